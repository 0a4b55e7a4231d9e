"""Try a reward file on answers: what each component, layer and gate gives each of them, before anything is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsr1_tune.align.rewards.layered import Answered, LayeredReward, RewardResult
from dsr1_tune.atomic import atomic_write
from dsr1_tune.data.read.ground_truth import RESULTS, result_of
from dsr1_tune.data.read.read import check_columns, read
from dsr1_tune.data.read.values import Unusable
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference, Record, Row, prompt_of
from dsr1_tune.errors import DataError

BATCH = 64


@dataclass(frozen=True, slots=True)
class Tested:
    """An answer, where it stands and what it got; `side` is chosen or rejected for one of a pair."""

    place: Place
    one: Answered
    result: RewardResult
    side: str = ""

    def as_json(self) -> dict[str, Any]:
        """All that is known of it, as plain JSON values."""
        return {
            "file": self.place.file,
            "line": self.place.line,
            **({"side": self.side} if self.side else {}),
            "question": self.one.question,
            "answer": self.one.answer,
            "expected": self.one.expected,
            "total": self.result.total,
            "layers": self.result.layers,
            "gates": self.result.gates,
            "components": self.result.components,
            "errors": list(self.result.errors),
        }


@dataclass(frozen=True)
class Outcome:
    """Every answer with its result, in the order of the files, and the rows that are none."""

    reward: LayeredReward
    tested: tuple[Tested, ...]
    drops: tuple[Drop, ...]


def run(
    reward: LayeredReward, files: Sequence[Path], mapping: dict[str, str], tick: Callable[[int, int], None]
) -> Outcome:
    """Score every answer of the files; `tick` gets how many are done, of how many.

    Raises DataError where there is no answer, or none has the expected result that the reward compares with.
    """
    found, drops = _answers(files, mapping)
    if not found:
        raise DataError(f"{_listed(files)}: holds no answers to test{_why(drops)}", hint=_HINT)
    if reward.needs_expected and not any(one.expected is not None for _, _, one in found):
        comparing = ", ".join(place for place, part in reward.components.items() if part.compares)
        raise DataError(
            f"{_listed(files)}: no row has an expected answer, and {comparing} of {reward.file} compares with it",
            hint=f"add a column {RESULTS[0]}, or name it: --map ground_truth=COLUMN; or leave those components out",
        )
    reward.open()
    tested: list[Tested] = []
    for first in range(0, len(found), BATCH):
        batch = found[first : first + BATCH]
        results = reward.score([one for _, _, one in batch])
        tested += [Tested(place, one, result, side) for (place, side, one), result in zip(batch, results, strict=True)]
        tick(len(tested), len(found))
    return Outcome(reward, tuple(tested), tuple(drops))


_HINT = "give rows with a question and an answer, or pairs; and, to compare with, a column expected"


def write(outcome: Outcome, out: Path) -> None:
    """One JSON line for each answer."""
    with atomic_write(out) as file:
        file.writelines(json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in outcome.tested)


def _answers(files: Sequence[Path], mapping: dict[str, str]) -> tuple[list[tuple[Place, str, Answered]], list[Drop]]:
    found: list[tuple[Place, str, Answered]] = []
    drops: list[Drop] = []
    # A row with a result that is named would be read as a prompt to be answered; here its answer is scored.
    column = mapping.get("ground_truth", "")
    mapping = {name: named for name, named in mapping.items() if name != "ground_truth"}
    columns: set[str] = set()
    for row in read(list(files), mapping):
        columns.update(row.row if isinstance(row.row, dict) else ())
        if isinstance(row, Drop):
            drops.append(row)
            continue
        outcome = _of(row, column, mapping.get("answer", ""))
        if isinstance(outcome, Drop):
            drops.append(outcome)
        else:
            found += [(row.place, side, one) for side, one in outcome]
    if column:
        check_columns({"ground_truth": column}, columns)
    return found, drops


def _of(row: Row, column: str, said: str) -> list[tuple[str, Answered]] | Drop:
    """The answers of a row, one or both of a pair; or why there is none. `said` is the column that is the answer."""
    fields = {name: value for name, value in row.row.items() if name != said} if isinstance(row.row, dict) else {}
    try:
        expected = result_of(fields, column)
    except Unusable as bad:
        return bad.drop.at(row.place, "read", row.row)
    if isinstance(row, Preference):
        sides = {"chosen": row.chosen, "rejected": row.rejected}
    elif isinstance(row, Feedback):
        sides = {"": row.completion}
    elif isinstance(row, Record):
        sides = {"": row.messages[-1]}
    else:
        drop = Drop("no_answer", "has a prompt only, no answer to test", "add a column answer")
        return drop.at(row.place, "read", row.row)
    return [(side, _answered(prompt_of(row), answer, expected, fields)) for side, answer in sides.items()]


def _answered(prompt: tuple[Message, ...], answer: Message, expected: str | None, fields: dict[str, Any]) -> Answered:
    """The answer with what the row's other columns say of it: num_tokens, has_ended."""
    tokens, ended = fields.get("num_tokens"), fields.get("has_ended")
    is_count = isinstance(tokens, (int, float)) and math.isfinite(tokens)  # tables have 12.0 where a column has gaps
    return Answered(
        prompt,
        answer.content,
        expected,
        int(tokens) if is_count else 0,  # type: ignore[arg-type]
        ended if isinstance(ended, bool) else True,
    )


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))


def _why(drops: Sequence[Drop]) -> str:
    return f"; the first row, {drops[0].place}: {drops[0].detail}" if drops else ""
