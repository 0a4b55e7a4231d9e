"""Does a row hold a part of the evaluation files?  13-grams shared, half of an evaluation question or more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsr1_tune.data.dedup import ngrams
from dsr1_tune.data.dedup.minhash import Lookup
from dsr1_tune.data.dedup.ngrams import LONG_GRAM, TURN, Grams, Hashes, Ints, Text, Tokens
from dsr1_tune.data.output import as_output
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.errors import DataError


@dataclass(frozen=True)
class Evaluation:
    """The questions of evaluation files, ready to be looked for.

    `hashes` (sorted) and `owners` say which question has which 13-gram, `sizes` how many different ones each has;
    questions of fewer tokens are found by equality, in `short`. `places` are their files and lines; `num_unreadable`
    rows could not be read.
    """

    hashes: Hashes
    owners: Ints
    sizes: Ints
    short: dict[bytes, int]
    places: tuple[str, ...]
    lookup: Lookup
    containment: float
    num_unreadable: int

    @classmethod
    def of(cls, files: Sequence[Path], mapping: Mapping[str, str], containment: float) -> Evaluation:
        """Read the files. Raises DataError where they hold no questions."""
        found_rows = _read(files, mapping)
        rows = [row for row in found_rows if not isinstance(row, Drop)]
        if not rows:
            raise DataError(f"{', '.join(map(str, files))}: no row can be read", hint="see: dsr1-tune data check FILE")
        text = ngrams.normalise([[("user", _asked(row))] for row in rows])
        found = ngrams.long_grams(ngrams.tokens(text))
        owners = np.repeat(np.arange(len(rows)), np.diff(found.bounds))
        pairs = np.unique(np.stack((found.hashes, owners.astype(np.uint64)), axis=1), axis=0)
        hashes, owners = pairs[:, 0], pairs[:, 1].astype(np.int64)
        sizes = np.bincount(owners, minlength=len(rows))
        short = {key: row for row, keys in enumerate(_turn_keys(text)) for key in keys if not sizes[row]}
        short.pop(b"", None)
        places = tuple(str(row.place) for row in rows)
        return cls(hashes, owners, sizes, short, places, Lookup(hashes), containment, len(found_rows) - len(rows))

    def find(self, text: Text, found: Tokens) -> dict[int, Drop]:
        """The rows (by number) that hold an evaluation question, each with the reason."""
        drops: dict[int, Drop] = {}
        pieces = ngrams.long_grams(found)
        rows, owners, shares = self._shared(pieces)
        for row, owner, share in zip(rows.tolist(), owners.tolist(), shares.tolist(), strict=True):
            drops.setdefault(row, self._drop(owner, f"holds {share:.0%} of the {LONG_GRAM}-grams of"))
        if self.short:
            for row, keys in enumerate(_turn_keys(text)):
                owner = next((self.short[key] for key in keys if key in self.short), None)
                if owner is not None:
                    drops.setdefault(row, self._drop(owner, "asks the same as"))
        return drops

    def _shared(self, pieces: Grams) -> tuple[Ints, Ints, Hashes]:
        """(row, question, share) where a row holds enough of a question."""
        hits = np.flatnonzero(self.lookup.has(pieces.hashes))
        rows = np.searchsorted(pieces.bounds, hits, side="right") - 1
        hashes = pieces.hashes[hits]
        first = np.searchsorted(self.hashes, hashes, side="left")
        counts = np.searchsorted(self.hashes, hashes, side="right") - first
        # One line per row, question and 13-gram, however often the row repeats it.
        places = np.repeat(first, counts) + (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts))
        triples = np.unique(np.stack((np.repeat(rows, counts), places), axis=1), axis=0)
        pairs, num_shared = np.unique(
            np.stack((triples[:, 0], self.owners[triples[:, 1]]), axis=1), axis=0, return_counts=True
        )
        shares = num_shared / np.maximum(1, self.sizes[pairs[:, 1]])
        enough = shares >= self.containment
        order = np.lexsort((-shares[enough], pairs[enough, 0]))
        return pairs[enough, 0][order], pairs[enough, 1][order], shares[enough][order]

    def _drop(self, owner: int, what: str) -> Drop:
        return Drop(
            "contaminated", f"{what} the evaluation row {self.places[owner]}", "keep it out of the training data"
        )


def _read(files: Sequence[Path], mapping: Mapping[str, str]) -> list[Row | Drop]:
    """Evaluation files have columns of their own: the training data's names are used only where they fit."""
    if mapping:
        with suppress(DataError):
            return list(read(files, mapping))
    return list(read(files))


def _asked(row: Row) -> str:
    messages = as_output(row)["messages"]
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


def _turn_keys(text: Text) -> list[list[bytes]]:
    """For each row the normalised text of every user's turn."""
    marks = text.marks
    ends = np.append(marks[1:], len(text.codes))
    keys: dict[int, list[bytes]] = defaultdict(list)
    rows = np.searchsorted(text.bounds, marks, side="right") - 1
    for row, mark, end in zip(rows.tolist(), marks.tolist(), ends.tolist(), strict=True):
        if text.codes[mark] == ord(TURN["user"]):
            codes = text.codes[mark + 1 : end]
            keys[row].append(codes[codes != 0].tobytes())
    return [keys[row] for row in range(len(text.bounds) - 1)]
