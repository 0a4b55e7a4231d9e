"""The hashes by which rows are found alike: equal ones by their prints, near copies by their bands and sketches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.config import Dedup
from dsr1_tune.data.dedup import minhash, ngrams
from dsr1_tune.data.dedup.clusters import group_alike, joined
from dsr1_tune.data.dedup.exact import Prints, blocks, exact_key, fingerprints, kind_of, merge_exact
from dsr1_tune.data.dedup.languages import language_codes
from dsr1_tune.data.dedup.minhash import LEARNED_ROWS, Lookup, Pairs, Verified
from dsr1_tune.data.dedup.ngrams import Hashes, Ints, Text, Tokens
from dsr1_tune.data.output import Turns, turns_of_row
from dsr1_tune.data.record import Row, messages_of


@dataclass(frozen=True)
class RowHashes:
    """What is computed of N rows to compare them: a byte of each MinHash value (N, 120), and bands (30, N) of them.

    `sketches` and `bands` are empty where near copies are not looked for; `languages` are numbers in LANGUAGES.
    """

    kinds: npt.NDArray[np.uint8]
    languages: npt.NDArray[np.uint8]
    prints: Prints
    sketches: npt.NDArray[np.uint8]
    bands: Hashes

    @classmethod
    def of(cls, rows: Sequence[Row], text: Text, found: Tokens, boilerplate: Lookup | None) -> RowHashes:
        """Hash rows whose turns were taken apart; without `boilerplate`, near copies are not looked for."""
        sketches, bands = _sketches(found, boilerplate)
        kinds = np.array([kind_of(row) for row in rows], np.uint8)
        return cls(kinds, language_codes(found), fingerprints(text, rows), sketches, bands)


def _sketches(found: Tokens, boilerplate: Lookup | None) -> tuple[npt.NDArray[np.uint8], Hashes]:
    if boilerplate is None:
        num_rows = len(found.bounds) - 1
        return np.zeros((num_rows, 0), np.uint8), np.zeros((0, num_rows), np.uint64)
    pieces = ngrams.grams(found)
    if len(boilerplate.hashes):
        pieces = pieces.only(minhash.own_words(pieces, boilerplate))
    signs = ngrams.signatures(pieces)
    return signs.astype(np.uint8), ngrams.bands(signs)


def taken_apart(turns: Sequence[Turns]) -> tuple[Text, Tokens]:
    """Rows' normalised text and its tokens."""
    text = ngrams.normalise(turns)
    return text, ngrams.tokens(text)


def learn_boilerplate(rows: Sequence[Row]) -> Hashes:
    """The n-grams of the preambles that the first rows of a file share."""
    _, found = taken_apart([turns_of_row(row) for row in rows[:LEARNED_ROWS]])
    return minhash.boilerplate_of(ngrams.grams_and_words(found))


@dataclass(frozen=True)
class Alike:
    """Rows in memory (N) that belong together: those with the same number in `groups` must not be split.

    They ask the same, or are near copies, by some steps; `languages` and `num_chars` tell their strata.
    """

    groups: Ints
    languages: npt.NDArray[np.uint8]
    num_chars: Ints

    @classmethod
    def of(cls, rows: Sequence[Row], similarity: float = Dedup().similarity) -> Alike:
        """Find them, a block of rows at a time; of each row about 600 bytes are kept meanwhile."""
        by_file: dict[str, list[Row]] = {}
        for row in rows:
            some = by_file.setdefault(row.place.file, [])
            if len(some) < LEARNED_ROWS:
                some.append(row)
        learned = [learn_boilerplate(some) for some in by_file.values()]
        boilerplate = Lookup(np.concatenate([np.zeros(0, np.uint64), *learned]))
        parts = [
            RowHashes.of(block, *taken_apart([turns_of_row(row) for row in block]), boilerplate)
            for block in blocks(rows)
        ]
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.int64))
        prints = Prints.concatenate([part.prints for part in parts])
        kinds = np.concatenate([part.kinds for part in parts])
        sketches = np.concatenate([part.sketches for part in parts])
        num_bytes = np.array([sum(len(message.said) for message in messages_of(row)) for row in rows], np.int64)

        def compare(pairs: Pairs) -> Verified:
            return Verified.together(
                [_verified(rows, some, similarity, boilerplate) for some in minhash.batches(pairs, num_bytes)]
            )

        everyone = np.arange(len(rows))
        leader = merge_exact(exact_key(prints, kinds), everyone)
        near = minhash.near_pairs(
            lambda band: np.concatenate([part.bands[band] for part in parts]),
            lambda some: sketches[some],
            np.flatnonzero(leader == everyone),
            np.stack((kinds, prints.tools), axis=1),
            similarity,
            compare,
        )
        groups = group_alike(prints.question, np.concatenate((near.pairs, joined(leader))))
        languages = np.concatenate([part.languages for part in parts])
        return cls(groups, languages, (prints.question_chars + prints.answer_chars).astype(np.int64))


def _verified(rows: Sequence[Row], pairs: Pairs, similarity: float, boilerplate: Lookup) -> Verified:
    numbers = np.unique(pairs)
    return minhash.verify(pairs, numbers, [turns_of_row(rows[n]) for n in numbers.tolist()], similarity, boilerplate)
