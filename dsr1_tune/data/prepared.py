"""Prepared data: rows, files, drops and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dsr1_tune.data.record import DAMAGE, Drop, Record, Row
from dsr1_tune.data.report import RowCounts, build_report
from dsr1_tune.data.rules.pairs import PreferenceStats


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What a data file turned out to be, and how many rows it has; `is_eval` files are only evaluated on."""

    file: str
    layout: str
    encoding: str
    format: str
    num_rows: int
    formats: Mapping[str, int] = field(default_factory=dict)
    weight: float = 1.0
    is_eval: bool = False


@dataclass(frozen=True)
class Prepared:
    """What came of the data files: the rows kept, the rows dropped, and the files they stand in. Nothing is lost.

    `mended` counts the rows that the rules mended, by file and rule.
    """

    rows: tuple[Row, ...]
    drops: tuple[Drop, ...]
    files: tuple[FileSummary, ...]
    mended: Mapping[str, Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_rows = sum(file.num_rows for file in self.files)
        assert len(self.rows) + len(self.drops) == num_rows, "rows in = kept + dropped"

    @property
    def records(self) -> tuple[Record, ...]:
        """The kept rows that have an answer to learn."""
        return tuple(row for row in self.rows if isinstance(row, Record))

    @property
    def damage(self) -> tuple[Drop, ...]:
        """The drops after which a file holds further rows that nobody could read."""
        return tuple(drop for drop in self.drops if drop.code in DAMAGE)

    @cached_property
    def eval_files(self) -> frozenset[str]:
        """The files whose rows are evaluated on and never trained on."""
        return frozenset(file.file for file in self.files if file.is_eval)

    @property
    def eval_rows(self) -> tuple[Row, ...]:
        """The kept rows of those files."""
        return tuple(row for row in self.rows if row.place.file in self.eval_files)

    @property
    def train_rows(self) -> tuple[Row, ...]:
        """The kept rows of the other files."""
        return tuple(row for row in self.rows if row.place.file not in self.eval_files)

    def with_drops(self, drops: Iterable[Drop]) -> Prepared:
        """The same, less the kept rows that a later step drops: `Drop(...).at(row.place, "encode", row.row)`."""
        drops = tuple(drops)
        places = {drop.place for drop in drops}
        rows = tuple(row for row in self.rows if row.place not in places)
        return replace(self, rows=rows, drops=self.drops + drops)

    def report(self, **sections: Any) -> dict[str, Any]:
        """What report.json says of it; `sections` are those of later steps, such as the split."""
        by_file = {file.file: RowCounts(file.num_rows, formats=Counter(file.formats)) for file in self.files}
        for file, mended in self.mended.items():
            by_file[file].mended.update(mended)
        for drop in self.drops:
            counts = by_file[drop.place.file if drop.place else ""]
            counts.drop(drop)
            counts.add_example(drop)
        for row in self.rows:
            counts = by_file[row.place.file]
            counts.noted.update({note.code for note in row.notes})
            for note in row.notes:
                counts.add_example(note)
        opinions = PreferenceStats.of(self.rows)
        num_contaminated = sum(drop.code == "contaminated" for drop in self.drops)
        files = [
            (
                {"file": file.file, "layout": file.layout, "encoding": file.encoding, "weight": file.weight},
                by_file[file.file],
            )
            for file in self.files
        ]
        kinds = Counter(type(row).__name__.lower() for row in self.rows)
        return build_report(
            files,
            kinds=dict(kinds.most_common()),
            opinions=opinions.as_json() if opinions != PreferenceStats() else None,
            contamination=_contamination(self.files, len(self.eval_rows), num_contaminated),
            **sections,
        )


def _contamination(files: Sequence[FileSummary], num_questions: int, num_rows: int) -> dict[str, Any] | None:
    """How many training rows fell out as the evaluation files hold them too; None without such files."""
    held_out = [file for file in files if file.is_eval]
    if not held_out:
        return None
    return {
        "files": [file.file for file in held_out],
        "num_questions": num_questions,
        "num_unreadable": sum(file.num_rows for file in held_out) - num_questions,
        "num_rows": num_rows,
    }
