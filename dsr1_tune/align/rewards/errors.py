"""Rewards that failed for single answers: counted, kept with the answer, said now and then; or the end of the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from dsr1_tune.align.rewards.layered import Answered, RewardResult
from dsr1_tune.atomic import atomic_write
from dsr1_tune.errors import RunError
from dsr1_tune.runs.distributed import group

NAME = "reward_errors.jsonl"
MAX_KEPT = 5
"""Answers kept in memory for each component; the file has all of them."""


class RewardErrors:
    """Counts, for one run, the answers that a component could not score."""

    def __init__(self, folder: Path, on_error: Literal["stop", "zero"], say: Callable[[str], None]) -> None:
        self.file = folder / NAME
        self.on_error = on_error
        self.say = say
        self.counts: Counter[str] = Counter()
        self.kept: dict[str, list[dict[str, Any]]] = {}

    @property
    def num_errors(self) -> int:
        """How often a component failed, over all answers."""
        return self.counts.total()

    def resume(self, step: int) -> None:
        """Take up the count where a run goes on after `step`; what it does again is forgotten."""
        known = [line for line in _lines(self.file) if line.get("step", 0) <= step]
        if group.is_main() and self.file.exists():
            with atomic_write(self.file) as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in known)
        self.counts = Counter(line["component"] for line in known)

    def note(
        self,
        answers: Sequence[Answered],
        results: Sequence[RewardResult],
        step: int | None = None,
        is_share: bool = True,
    ) -> int:
        """Keep what went wrong with these answers; how much that was. Raises RunError at the first with `stop`.

        Where there are several processes all call it, each with its share, or (not `is_share`) all with the same; one
        of them writes.
        """
        lines = [
            _line(one, error, step) for one, result in zip(answers, results, strict=True) for error in result.errors
        ]
        if is_share:
            lines = group.all_gather(lines)
        if not lines:
            return 0
        if group.is_main():
            with self.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        if self.on_error == "stop":
            raise self._stopped(lines[0])
        for line in lines:
            self._count(line)
        return len(lines)

    def _count(self, line: dict[str, Any]) -> None:
        component = line["component"]
        self.counts[component] += 1
        number = self.counts[component]
        self.kept.setdefault(component, [])
        if len(self.kept[component]) < MAX_KEPT:
            self.kept[component].append(line)
        if _is_power_of_ten(number):
            times = "" if number == 1 else f", {number:,} times by now"
            self.say(
                f"reward {component} failed and counts 0{times}: {line['error']}; answer: {_short(line['answer'])}"
            )

    def _stopped(self, line: dict[str, Any]) -> RunError:
        message = f"reward {line['component']} failed: {line['error']}; answer: {_short(line['answer'])}"
        hint = f"the answer is in {self.file}; mend the reward and go on with --resume"
        return RunError(message, hint=hint)

    def summary(self) -> str:
        """One line for the end of a run, or nothing."""
        if not self.counts:
            return ""
        listed = ", ".join(f"{component} {count:,} times" for component, count in self.counts.most_common())
        return f"rewards that failed and counted 0: {listed}; every one is in {self.file}"


def _lines(file: Path) -> list[dict[str, Any]]:
    """What the file holds; a line that a killed run left half written is no line."""
    if not file.exists():
        return []
    found = []
    with file.open("rb") as lines:  # an answer may hold other line ends, such as U+2028, as they are
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "component" in row:
                found.append(row)
    return found


def _line(one: Answered, error: str, step: int | None) -> dict[str, Any]:
    component, _, said = error.partition(": ")
    return {
        **({} if step is None else {"step": step}),
        "component": component,
        "error": said,
        "question": one.question,
        "answer": one.answer,
        "expected": one.expected,
    }


def _is_power_of_ten(number: int) -> bool:
    return str(number).rstrip("0") == "1"


def _short(text: str, most: int = 80) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= most else text[:most] + "…")
