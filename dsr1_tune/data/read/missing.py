"""Missing values that tables spell out: cells such as nan, None, NULL and N/A are blanks, unless they are meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeGuard

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.read.formats import Shape
from dsr1_tune.data.read.ground_truth import RESULTS
from dsr1_tune.data.read.values import path_to, plain_name
from dsr1_tune.data.record import Drop

_TABLE = PhraseTable(__file__)

_MAY_BE_MEANT = frozenset({"NaN", "None", "null", "NULL", "NA", "N/A", "n/a"})
MARKERS = _MAY_BE_MEANT | {
    "nan", "-nan", "-NaN", "NaT", "<NA>", "#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"
}  # fmt: skip
"""What pandas' read_csv takes for a missing value unless it is told otherwise, and how pandas writes a missing time.

`str` makes such texts of None and of NaN; `to_csv(na_rep=...)` writes whichever its caller likes.
"""
MAX_SHORT_CHARS = 20
"""In a column whose texts are mostly no longer than this, a word may be a whole answer."""
MAX_MEANT_SHARE = 0.1
"""A word that more of a column's cells hold is how its blanks are written."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What the first rows of a file say about its missing values.

    Of a table (CSV, TSV) every cell is looked at, elsewhere, where null can be told from text, only `optional` columns:
    pandas leaves such texts there, too. `short` columns mostly hold short texts, `filled` ones are mostly filled;
    `usual` are the (column, marker) pairs that stand for a column's blanks.
    """

    is_table: bool = False
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    short: frozenset[str] = frozenset()
    filled: frozenset[str] = frozenset()
    usual: frozenset[tuple[str, str]] = frozenset()
    question: tuple[str, ...] = ()

    @classmethod
    def learn(cls, rows: Sequence[Any], shape: Shape | None, is_table: bool) -> Missing:
        """From the rows as they were read, and the shape that most of them have."""
        if shape is None:
            return cls(is_table)
        some = [row for row in rows if isinstance(row, dict)]
        needed = tuple(filter(None, (*shape.question[:1], shape.answer, shape.turns, shape.chosen, shape.rejected)))
        named = {*RESULTS, plain_name(shape.result)} - {""}
        results = [name for row in some[:1] for name in row if plain_name(str(name)) in named]
        if is_table:
            needed += tuple(name for name in results if name not in needed)
        judged = (shape.label, *shape.scores) if is_table else ()
        optional = tuple(filter(None, (*shape.question[1:], shape.system, shape.history, shape.tools, *judged)))
        columns = {name: [row.get(name) for row in some] for name in (*needed, *optional)}
        texts = {name: [cell for cell in cells if _is_filled(cell)] for name, cells in columns.items()}
        return cls(
            is_table,
            needed,
            optional,
            frozenset(name for name, said in texts.items() if not said or median(map(len, said)) <= MAX_SHORT_CHARS),
            frozenset(name for name, said in texts.items() if 2 * len(said) > len(some)),
            frozenset(
                (name, marker)
                for name, cells in columns.items()
                for marker in MARKERS
                if cells.count(marker) > MAX_MEANT_SHARE * len(cells)
            ),
            shape.question,
        )

    def blanked(self, row: dict[str, Any], notes: list[Drop]) -> dict[str, Any]:
        """The row with null where a cell says that nothing is there, itself where none does; remarks go to `notes`."""
        if self.is_table:
            # Cells are texts, and hardly a row has one of these.
            if MARKERS.isdisjoint(row.values()):
                return row
            found = {name: cell for name, cell in row.items() if cell in MARKERS}
        else:
            found = {name: cell for name in self.optional if type(cell := row.get(name)) is str and cell in MARKERS}
            if not found:
                return row
        meant = {name for name, cell in found.items() if self._is_meant(name, cell, row)}
        notes += [
            _kept(name, cell) if name in meant else _blank(name, cell)
            for name, cell in found.items()
            if name in meant or name in self.optional
        ]
        return {**row, **{name: None for name in found if name not in meant}} if len(found) > len(meant) else row

    def _is_meant(self, name: str, cell: str, row: Mapping[str, Any]) -> bool:
        """Whether the word is what the cell says: an answer that was asked for, or a value among short ones.

        A needed cell is meant where its question holds the word, or asks for a value and answers are short; another
        one where its column is nearly always filled, with short texts.
        """
        if name in self.optional:
            is_rare = name in self.filled and name in self.short and (name, cell) not in self.usual
            return cell in _MAY_BE_MEANT and is_rare
        if name not in self.needed or name in self.question:
            return False
        asked = "\n".join(said for column in self.question if _is_filled(said := row.get(column)))
        if re.search(rf"(?<!\w){re.escape(cell)}(?!\w)", asked):
            return True
        asks = _TABLE.asks_for_a_value.search(asked.lower()) is not None
        return cell in _MAY_BE_MEANT and name in self.short and asks


def said_of(row: Any, bad: Drop) -> Drop:
    """A Drop for a null, with what the cell really says; `row` is the row as it was read."""
    if bad.code != "null_value":
        return bad
    cell = next((cell for name, cell in row.items() if path_to(name) == bad.path), None)
    if not isinstance(cell, str):
        return bad
    fix = "write the text, or remove the row; if the word itself is meant, save the file as JSON lines"
    return Drop(bad.code, f"the cell says {cell!r}, which is how tables write that nothing is there", fix, bad.path)


def _is_filled(cell: Any) -> TypeGuard[str]:
    return isinstance(cell, str) and bool(cell.strip()) and cell not in MARKERS


def _blank(name: str, cell: str) -> Drop:
    return Drop("blank_marker", f"says {cell!r}, which is read as a blank", "leave the cell empty", path_to(name))


def _kept(name: str, cell: str) -> Drop:
    detail = f"says {cell!r}, which is taken for a text and not for a missing value"
    return Drop("marker_kept", detail, "leave the cell empty if nothing is meant", path_to(name))
