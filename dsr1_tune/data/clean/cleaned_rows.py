"""What became of every row, and the files that say so: train, eval, rejected and duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.clean.duplicates import Copies
from dsr1_tune.data.clean.row_store import Block, RowStore
from dsr1_tune.data.dedup.exact import KINDS, exact_duplicate
from dsr1_tune.data.output import answer_of, dumps, question_of
from dsr1_tune.data.record import Drop
from dsr1_tune.data.report import reject
from dsr1_tune.data.rules.pairs import contradiction

MAX_SHOWN_CHARS = 80
GROUPS_AT_ONCE = 1000


class RowStatus(IntEnum):
    """Where a row ends that the scan kept."""

    TRAIN = 0
    EVAL = 1
    EXACT = 2
    NEAR = 3
    CONTRADICTED = 4
    JUDGED = 5
    NOT_DRAWN = 6


@dataclass(frozen=True)
class CleanedRows:
    """Every row's status (N), how often it is written, and what dropped it.

    `copies` says which row stands for a merged one, `judged` what the judge objects to.
    """

    store: RowStore
    statuses: npt.NDArray[np.uint8]
    times: npt.NDArray[np.uint8]
    copies: Copies
    judged: dict[int, Drop]

    def count(self, status: RowStatus) -> int:
        """How many rows end so."""
        return int(np.count_nonzero(self.statuses == status))

    def drop(self, row: int) -> Drop | None:
        """Why a row fell out after the scan, if it did."""
        match RowStatus(self.statuses[row]):
            case RowStatus.EXACT:
                return exact_duplicate(self._where(row, int(self.copies.same_as[row])))
            case RowStatus.NEAR:
                share, where = f"{self.copies.similarity[row]:.0%}", self._where(row, int(self.copies.stands_for[row]))
                drop = Drop("near_duplicate", f"shares {share} of its n-grams with {where}", "remove one of them")
            case RowStatus.CONTRADICTED if self.store.kinds[row]:
                drop = contradiction(self._kind(row), self._where(row, self.copies.contradicted[row]))
            case RowStatus.CONTRADICTED:
                other = self.copies.contradicted[row]
                detail = f"the same question is answered otherwise at {self._where(row, other)}"
                drop = Drop("contradictory_answer", f"{detail}: {self._answer(other)!r}", "keep the right one")
            case RowStatus.JUDGED:
                drop = self.judged[row]
            case RowStatus.NOT_DRAWN:
                drop = Drop("not_drawn", "the file's weight is below 1", "give the file the weight 1 to take all")
            case _:
                return None
        return drop

    def code(self, row: int) -> str:
        """The code of what dropped a row after the scan."""
        status = RowStatus(self.statuses[row])
        if status == RowStatus.CONTRADICTED:
            return contradiction(self._kind(row), "").code if self.store.kinds[row] else "contradictory_answer"
        drop = self.drop(row)
        return drop.code if drop else ""

    def _kind(self, row: int) -> str:
        return KINDS[min(int(self.store.kinds[row]), len(KINDS) - 1)]

    def stage(self, status: RowStatus) -> str:
        """The stage in which a row with this status fell out."""
        return {RowStatus.JUDGED: "judge", RowStatus.NOT_DRAWN: "selection"}.get(status, "duplicates")

    def _where(self, row: int, other: int) -> str:
        return self.store.place_of(other).seen_from(self.store.place_of(row))

    def _answer(self, row: int) -> str:
        return answer_of(self.store.outputs(np.array([row]))[0])[:MAX_SHOWN_CHARS]


def write_rows(cleaned: CleanedRows, folder: Path) -> None:
    """Write train.jsonl, eval.jsonl and rejected.jsonl, a chunk at a time, in the order of the files."""
    with (
        (folder / "train.jsonl").open("wb") as train,
        (folder / "eval.jsonl").open("wb") as held_out,
        (folder / "rejected.jsonl").open("wb") as rejected,
    ):
        for block in cleaned.store.blocks:
            statuses = cleaned.statuses[block.first_row : block.first_row + block.num_rows]
            _write_kept(cleaned, block, statuses, train, held_out)
            for _, line in sorted(_rejected(cleaned, block, statuses)):
                rejected.write(line + b"\n")


def _write_kept(
    cleaned: CleanedRows, block: Block, statuses: npt.NDArray[np.uint8], train: IO[bytes], held_out: IO[bytes]
) -> None:
    lines = cleaned.store.lines(block, "rows")
    times = cleaned.times[block.first_row : block.first_row + block.num_rows]
    for number in np.flatnonzero(statuses == RowStatus.TRAIN).tolist():
        train.write((lines[number] + b"\n") * int(times[number]))
    for number in np.flatnonzero(statuses == RowStatus.EVAL).tolist():
        held_out.write(lines[number] + b"\n")


def _rejected(cleaned: CleanedRows, block: Block, statuses: npt.NDArray[np.uint8]) -> Iterator[tuple[int, bytes]]:
    """(index in the file, line) of every row of the chunk that fell out, in the scan or later."""
    store = cleaned.store
    yield from zip(store.numbers(block, "drop_numbers"), store.lines(block, "drops"), strict=True)
    fallen = np.flatnonzero(statuses > RowStatus.EVAL).tolist()
    if not fallen:
        return
    raws, numbers = store.lines(block, "raws"), store.numbers(block, "numbers")
    for number in fallen:
        row = block.first_row + number
        drop = cleaned.drop(row)
        assert drop
        stage = cleaned.stage(RowStatus(statuses[number]))
        yield numbers[number], reject(drop.at(store.place_of(row), stage, None), raws[number])


def write_groups(cleaned: CleanedRows, path: Path) -> dict[str, Any]:
    """Write duplicates.jsonl, a group per line: the row that stays and those it stands for; count them."""
    copies = cleaned.copies
    merged = np.flatnonzero(copies.stands_for != np.arange(len(copies.stands_for)))
    merged = merged[np.argsort(copies.stands_for[merged], kind="stable")]
    edges = np.flatnonzero(np.diff(copies.stands_for[merged])) + 1
    groups = [np.concatenate((copies.stands_for[rows[:1]], rows)) for rows in np.split(merged, edges) if len(rows)]
    sizes = [len(rows) for rows in groups]
    largest: dict[int, dict[str, Any]] = {
        number: {} for number in sorted(range(len(groups)), key=lambda number: -sizes[number])[:10]
    }
    with path.open("wb") as file:
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            rows = np.unique(np.concatenate(some))
            texts = dict(zip(rows.tolist(), cleaned.store.outputs(rows), strict=True))
            for number, members in enumerate(some, start):
                group = _group(cleaned, number, members, texts)
                file.write(dumps(group) + b"\n")
                if number in largest:
                    kept = group["kept"]
                    where, text = f"{kept['file']}:{kept['line']}", kept["question"]
                    largest[number] = {"group": number, "num_rows": sizes[number], "kept": where, "text": text}
    return {"num_groups": len(groups), "largest": list(largest.values())}


def _group(
    cleaned: CleanedRows, number: int, rows: npt.NDArray[np.int64], texts: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    kept, *merged = [
        {
            **asdict(cleaned.store.place_of(row)),
            "kind": "exact" if cleaned.copies.same_as[row] == rows[0] else "near",
            "similarity": round(float(cleaned.copies.similarity[row]), 4),
            "question": question_of(texts[row])[:MAX_SHOWN_CHARS],
            "answer": answer_of(texts[row])[:MAX_SHOWN_CHARS],
        }
        for row in rows.tolist()
    ]
    for name in ("kind", "similarity"):
        del kept[name]
    kind = "near" if any(one["kind"] == "near" for one in merged) else "exact"
    return {"group": number, "kind": kind, "kept": kept, "merged": merged}
