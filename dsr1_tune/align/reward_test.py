"""Try a reward file on answers: what each component, layer and gate gives each of them, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsr1_tune.align.rewards import Answered, LayeredReward, Verdict
from dsr1_tune.data.read import read
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference, Prompt, Record, Row
from dsr1_tune.errors import DataError
from dsr1_tune.whole import whole_file

EXPECTED = ("expected", "ground_truth", "reference_answer")
"""Columns that hold the checkable result, the first that a row has."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Tested:
    """An answer, where it stands and what it got; `side` is chosen or rejected for one of a pair."""

    place: Place
    one: Answered
    verdict: Verdict
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
            "total": self.verdict.total,
            "layers": self.verdict.layers,
            "gates": self.verdict.gates,
            "components": self.verdict.components,
            "errors": list(self.verdict.errors),
        }


@dataclass(frozen=True)
class Outcome:
    """Every answer with its verdict, in the order of the files, and the rows that are none."""

    reward: LayeredReward
    tested: tuple[Tested, ...]
    drops: tuple[Drop, ...]


def run(
    reward: LayeredReward, files: Sequence[Path], mapping: dict[str, str], tick: Callable[[int, int], None]
) -> Outcome:
    """Judge every answer of the files; `tick` is told how many are done, of how many.

    Raises DataError where there is no answer, or none has the expected result that the reward compares with.
    """
    found, drops = _answers(files, mapping)
    if not found:
        raise DataError(f"{_listed(files)}: holds no answers to test{_why(drops)}", hint=_HINT)
    if reward.needs_expected and not any(one.expected for _, _, one in found):
        comparing = ", ".join(place for place, part in reward.components.items() if part.compares)
        raise DataError(
            f"{_listed(files)}: no row has an expected answer, and {comparing} of {reward.file} compares with it",
            hint=f"add a column {' or '.join(EXPECTED)}, or leave those components out",
        )
    reward.open()
    tested: list[Tested] = []
    for first in range(0, len(found), BATCH):
        batch = found[first : first + BATCH]
        verdicts = reward.judge([one for _, _, one in batch])
        tested += [
            Tested(place, one, verdict, side) for (place, side, one), verdict in zip(batch, verdicts, strict=True)
        ]
        tick(len(tested), len(found))
    return Outcome(reward, tuple(tested), tuple(drops))


_HINT = "give rows with a question and an answer, or pairs; and, to compare with, a column expected"


def write(outcome: Outcome, out: Path) -> None:
    """One JSON line for each answer."""
    with whole_file(out) as file:
        file.writelines(json.dumps(one.as_json(), ensure_ascii=False) + "\n" for one in outcome.tested)


def _answers(files: Sequence[Path], mapping: dict[str, str]) -> tuple[list[tuple[Place, str, Answered]], list[Drop]]:
    found: list[tuple[Place, str, Answered]] = []
    drops: list[Drop] = []
    for row in read(list(files), mapping):
        if isinstance(row, Drop):
            drops.append(row)
            continue
        before = len(found)
        found += [(row.place, side, one) for side, one in _of(row)]
        if len(found) == before:
            drop = Drop("no_answer", "has a prompt only, no answer to test", "add a column answer")
            drops.append(drop.at(row.place, "read", row.row))
    return found, drops


def _of(row: Row) -> Iterator[tuple[str, Answered]]:
    """The answers of a row: one, or both of a pair."""
    if isinstance(row, Preference):
        yield "chosen", _answered(row.prompt, row.chosen, row.row)
        yield "rejected", _answered(row.prompt, row.rejected, row.row)
    elif isinstance(row, Feedback):
        yield "", _answered(row.prompt, row.completion, row.row)
    elif isinstance(row, Record):
        yield "", _answered(row.messages[:-1], row.messages[-1], row.row)
    else:
        assert isinstance(row, Prompt)


def _answered(prompt: tuple[Message, ...], answer: Message, row: Any) -> Answered:
    """The answer with what else the row's columns say of it: expected, num_tokens, has_ended."""
    row = row if isinstance(row, dict) else {}
    expected = next((row[name] for name in EXPECTED if row.get(name) is not None), None)
    tokens, ended = row.get("num_tokens"), row.get("has_ended")
    return Answered(
        prompt,
        answer.content,
        None
        if expected is None
        else expected
        if isinstance(expected, str)
        else json.dumps(expected, ensure_ascii=False),
        tokens if isinstance(tokens, int) else 0,
        ended if isinstance(ended, bool) else True,
    )


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))


def _why(drops: Sequence[Drop]) -> str:
    return f"; the first row, {drops[0].place}: {drops[0].detail}" if drops else ""
