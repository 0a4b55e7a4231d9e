"""One chunk of a data file: read, rules, personal data, contamination → what is kept, what fell out, and its hashes.

This is the part that worker processes share: a chunk's outcome depends on the chunk and the settings alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.clean.chunks import Chunk, read_chunk
from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.minhash import Lookup
from dsr1_tune.data.dedup.ngrams import Hashes
from dsr1_tune.data.dedup.row_hashes import RowHashes, taken_apart
from dsr1_tune.data.output import as_output, dumps, turns_of_row
from dsr1_tune.data.privacy.guard import Action, Guard
from dsr1_tune.data.record import Checked, Drop, Row
from dsr1_tune.data.report import MAX_EXAMPLE_CHARS, MAX_EXAMPLES, RowCounts, reject, sound
from dsr1_tune.data.row_check import RowCheck
from dsr1_tune.data.rules.packs import Pack
from dsr1_tune.data.rules.pairs import stance_of

_LONG_NUMBER = re.compile(r"[0-9]{5,}[0-9A-Za-z]*|\S*@\S*|\.\w+\.(?:cn|com|org|net)\b")


@dataclass(frozen=True)
class ScanSettings:
    """What a worker needs to know; small enough to be sent to each."""

    pack: Pack
    privacy_action: Action
    privacy_kinds: tuple[str, ...]
    near: bool
    boilerplate: Hashes
    unended_files: frozenset[str]
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Scanned:
    """The outcome of one chunk: N kept rows, D dropped ones.

    `rows` and `raws` are the kept rows as they will be written and as they were read, `drops` the dropped ones'
    lines for rejected.jsonl; `numbers` and `drop_numbers` are their indices in the file, `lines` their lines; `stances`
    are what `stance_of` says of the rows.
    """

    rows: list[bytes]
    raws: list[bytes]
    numbers: npt.NDArray[np.uint32]
    lines: npt.NDArray[np.uint32]
    stances: Hashes
    hashes: RowHashes
    drops: list[bytes]
    drop_numbers: npt.NDArray[np.int64]
    counts: RowCounts


class Scanner:
    """The steps with everything they look up, made once per process."""

    def __init__(self, settings: ScanSettings) -> None:
        self._row_check = RowCheck(settings.pack, settings.unended_files)
        self._guard = Guard(settings.privacy_kinds, settings.privacy_action)
        self._hide: Callable[[str], str] = self._guard.hide if settings.privacy_action in ("redact", "drop") else str
        self.boilerplate = Lookup(settings.boilerplate)
        self._evaluation = settings.evaluation
        self._near = self.boilerplate if settings.near else None

    def scan(self, chunk: Chunk) -> Scanned:
        """Read and judge every row of the chunk, one by one; then hash the kept ones all at once."""
        read, known = read_chunk(chunk)
        counts = RowCounts(len(read), formats=known.formats, columns=Counter(map(sound, known.columns)))
        drops: list[Drop] = []
        kept: list[Row] = []
        for item in read:
            outcome = item if isinstance(item, Drop) else self._check(item, counts)
            if isinstance(outcome, Drop):
                drops.append(outcome)
            else:
                kept.append(outcome)
        text, found = taken_apart([turns_of_row(row) for row in kept])
        if self._evaluation and kept:
            held = self._evaluation.find(text, found)
            if held:
                drops += [drop.at(kept[n].place, "contamination", kept[n].row) for n, drop in held.items()]
                kept = [row for number, row in enumerate(kept) if number not in held]
                text, found = taken_apart([turns_of_row(row) for row in kept])
        drops.sort(key=lambda drop: drop.place.index if drop.place else 0)
        for drop in drops:
            counts.drop(drop)
            self._show(drop, counts)
        return Scanned(
            rows=[dumps(as_output(row)) for row in kept],
            raws=[dumps(row.row) for row in kept],
            numbers=np.array([row.place.index for row in kept], np.uint32),
            lines=np.array([row.place.line for row in kept], np.uint32),
            stances=np.array([stance_of(row) for row in kept], np.uint64),
            hashes=RowHashes.of(kept, text, found, self._near),
            drops=[reject(drop, dumps(drop.row)) for drop in drops],
            drop_numbers=np.array([drop.place.index if drop.place else 0 for drop in drops], np.int64),
            counts=counts,
        )

    def _check(self, row: Row, counts: RowCounts) -> Row | Drop:
        """Rules, then personal data; the first that objects decides."""
        checked = self._row_check.check(row)
        if isinstance(checked.row, Drop):
            return checked.row.at(row.place, "rules", row.row)
        guarded = self._guarded(checked.row, counts)
        if isinstance(guarded.row, Drop):
            return guarded.row.at(row.place, "privacy", row.row)
        notes = (*row.notes, *checked.notes)
        if notes or checked.repaired or guarded.repaired:
            self._remark(row, notes, {*checked.repaired, *guarded.repaired}, counts)
        return guarded.row

    def _guarded(self, row: Row, counts: RowCounts) -> Checked:
        if self._guard.action == "off":
            return Checked(row)
        guarded, found = self._guard.check(row)
        if found:
            counts.personal.update(found)
            counts.personal_rows.update(found.keys())
        return guarded

    def _remark(self, row: Row, notes: Sequence[Drop], mended: set[str], counts: RowCounts) -> None:
        """Count what is odd about a kept row, and what was mended in it."""
        for code in {note.code for note in notes}:
            counts.noted[code] += 1
        for note in notes:
            self._show(note.at(row.place, "note", row.row), counts)
        counts.mended.update(mended)

    def _show(self, drop: Drop, counts: RowCounts) -> None:
        """Keep the row as an example, as it was read, less its personal data: reports travel further than data."""
        if len(counts.examples.get(drop.code, ())) < MAX_EXAMPLES:
            read = dumps(drop.row)[: 4 * MAX_EXAMPLE_CHARS].decode(errors="replace")
            counts.add_example(drop, self._hide(read), hide=str if self._hide is str else self._hide_detail)

    def _hide_detail(self, detail: str) -> str:
        # An excerpt may hold a part of a number, which nobody recognises.
        return _LONG_NUMBER.sub("…", self._hide(detail.split(", near ")[0]))
