"""Try a reward file on answers: what each component, layer and gate gives each of them, in tables and JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsr1_tune.align.rewards.component import answers_of
from dsr1_tune.align.rewards.layered import Answered, LayeredReward, RewardResult, layer_score
from dsr1_tune.atomic import atomic_write
from dsr1_tune.data.read.ground_truth import RESULTS, result_of
from dsr1_tune.data.read.read import check_columns, read
from dsr1_tune.data.read.values import Unusable
from dsr1_tune.data.record import Drop, Place, Row, prompt_of
from dsr1_tune.errors import DataError
from dsr1_tune.text.amount import amount

BATCH, MAX_CHARS = 64, 160


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
    names = ", ".join(map(str, files))
    if not found:
        why = f"; the first row, {drops[0].place}: {drops[0].detail}" if drops else ""
        hint = "give rows with a question and an answer, or pairs; and, to compare with, a column expected"
        raise DataError(f"{names}: holds no answers to test{why}", hint=hint)
    if reward.needs_expected and not any(one.expected is not None for _, _, one in found):
        comparing = ", ".join(place for place, part in reward.components.items() if part.compares)
        raise DataError(
            f"{names}: no row has an expected answer, and {comparing} of {reward.file} compares with it",
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
            found += [(row.place, "" if name == "answer" else name, one) for name, one in outcome]
    if column:
        check_columns({"ground_truth": column}, columns)
    return found, drops


def _of(row: Row, column: str, said: str) -> list[tuple[str, Answered]] | Drop:
    """The answers of a row by their names, or why there is none. `said` is the column that is the answer."""
    fields = {name: value for name, value in row.row.items() if name != said} if isinstance(row.row, dict) else {}
    try:
        expected = result_of(fields, column)
    except Unusable as bad:
        return bad.drop.at(row.place, "read", row.row)
    answers = answers_of(row)
    if not answers:
        drop = Drop("no_answer", "has a prompt only, no answer to test", "add a column answer")
        return drop.at(row.place, "read", row.row)
    # What the row's other columns say of it; tables have 12.0 tokens where a column has gaps.
    tokens, ended = fields.get("num_tokens"), fields.get("has_ended")
    num_tokens = int(tokens) if isinstance(tokens, (int, float)) and math.isfinite(tokens) else 0
    has_ended = ended if isinstance(ended, bool) else True
    return [
        (name, Answered(prompt_of(row), answer.said, expected, num_tokens, has_ended))
        for name, answer in answers.items()
    ]


# --- what is shown ----------------------------------------------------------------------------------------------------


def show(outcome: Outcome, console: Console, num_shown: int) -> None:
    """The first answers one by one, the rows that are none, and the summary."""
    for one in outcome.tested[:num_shown]:
        _show_answer(one, outcome.reward, console)
    left = len(outcome.tested) - num_shown
    if left > 0 and num_shown:
        console.print(f"\n... and {left:,} more answers, which the summary counts too", markup=False, highlight=False)
    for drop in outcome.drops[:5]:
        console.print(f"not tested: {drop.place}: {drop.detail}; {drop.fix}", markup=False, highlight=False)
    if len(outcome.drops) > 5:
        console.print(f"not tested: {len(outcome.drops) - 5:,} more rows", markup=False, highlight=False)
    _show_summary(outcome, console)
    _show_pairs(outcome.tested, console)


def _show_answer(one: Tested, reward: LayeredReward, console: Console) -> None:
    result = one.result
    side = f", {one.side}" if one.side else ""
    console.print(f"\n[bold]{escape(str(one.place))}{side}: {_short(result.total)}[/bold]", highlight=False)
    for title, text in (("question", one.one.question), ("answer", one.one.answer), ("expected", one.one.expected)):
        if text is not None:
            text = " ".join(text.split())
            shown = text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"
            console.print(f"  [cyan]{title}:[/cyan] {escape(shown)}", highlight=False)
    table = _with_numbers(Table(box=box.SIMPLE_HEAD, pad_edge=False), "score", "weight", "gate", "gives")
    failed = {line.partition(": ")[0] for line in result.errors}
    for layer in reward.settings.layers:
        gate, gated = result.gates[layer.name], result.layers[layer.name]
        score = layer_score(layer, result.components)
        numbers = (_short(score), f"{layer.weight:g}", _short(gate), _short(layer.weight * gated))
        table.add_row(layer.name, *numbers, style="" if gate else "dim")
        for part in layer.components:
            place = f"{layer.name}/{part.title}"
            given = "failed" if place in failed else _short(result.components[place])
            style = "red" if place in failed else "dim"
            table.add_row(f"  {part.title}", given, f"{part.weight:g}", "", "", style=style)
    console.print(table)
    for line in result.errors:
        console.print(f"  [red]failed:[/red] {escape(line)}", highlight=False)


def _show_summary(outcome: Outcome, console: Console) -> None:
    tested, reward = outcome.tested, outcome.reward
    title = f"{len(tested):,} answer{'s' * (len(tested) != 1)}"
    plain = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table = _with_numbers(plain, "mean", "min", "max", "are 0", "failed")
    for layer in reward.settings.layers:
        table.add_row(f"{layer.name}, gated", *_spread([one.result.layers[layer.name] for one in tested]), "")
        for part in layer.components:
            place = f"{layer.name}/{part.title}"
            failed = sum(line.startswith(f"{place}: ") for one in tested for line in one.result.errors)
            scores = [one.result.components[place] for one in tested]
            table.add_row(f"  {part.title}", *_spread(scores), f"{failed:,}" if failed else "", style="dim")
    table.add_section()
    table.add_row("total", *_spread([one.result.total for one in tested]), "")
    console.print()
    console.print(table)


def _show_pairs(tested: Sequence[Tested], console: Console) -> None:
    pairs = [
        (a.result.total, b.result.total)
        for a, b in pairwise(tested)
        if (a.side, b.side) == ("chosen", "rejected") and a.place == b.place
    ]
    if not pairs:
        return
    more = sum(chosen > rejected for chosen, rejected in pairs)
    ties = sum(chosen == rejected for chosen, rejected in pairs)
    margin = sum(chosen - rejected for chosen, rejected in pairs) / len(pairs)
    equal = f", the same in {ties:,}" if ties else ""
    share = f"{more:,} of {amount(len(pairs), 'pair')} ({more / len(pairs):.0%}){equal}"
    text = f"The chosen answer gets more in {share}; on average {margin:+.3f}."
    console.print(text, markup=False, highlight=False)


def _with_numbers(table: Table, *columns: str) -> Table:
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _spread(values: Sequence[float]) -> tuple[str, str, str, str]:
    share = sum(value == 0 for value in values) / len(values)
    return _short(sum(values) / len(values)), _short(min(values)), _short(max(values)), f"{share:.0%}"


def _short(value: float) -> str:
    return f"{value:.3f}"
