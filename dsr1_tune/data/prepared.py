"""Prepared data: rows, files, drops and counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dsr1_tune.data.record import DAMAGE, Drop, Record, Row


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a data file turned out to be, and how many rows it has."""

    file: str
    layout: str
    encoding: str
    format: str
    num_rows: int


@dataclass(frozen=True)
class Prepared:
    """What came of the data files: the rows kept, the rows dropped, and the files they stand in. Nothing is lost."""

    rows: tuple[Row, ...]
    drops: tuple[Drop, ...]
    files: tuple[FileFacts, ...]

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

    def with_drops(self, drops: Iterable[Drop]) -> Prepared:
        """The same, less the kept rows that a later step drops: `Drop(...).at(row.place, "encode", row.row)`."""
        drops = tuple(drops)
        places = {drop.place for drop in drops}
        rows = tuple(row for row in self.rows if row.place not in places)
        return replace(self, rows=rows, drops=self.drops + drops)
