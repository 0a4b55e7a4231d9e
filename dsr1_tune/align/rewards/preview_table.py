"""What a reward file gives, for people: an answer at a time, then every component over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsr1_tune.align.rewards.layered import LayeredReward, layer_score
from dsr1_tune.align.rewards.preview import Outcome, Tested

MAX_CHARS = 160


def show(outcome: Outcome, console: Console, num_shown: int) -> None:
    """The first answers one by one, the rows that are none, and the summary."""
    for one in outcome.tested[:num_shown]:
        _show_answer(one, outcome.reward, console)
    left = len(outcome.tested) - num_shown
    if left > 0 and num_shown:
        _say(console, f"\n... and {left:,} more answers, which the summary counts too")
    for drop in outcome.drops[:5]:
        _say(console, f"not tested: {drop.place}: {drop.detail}; {drop.fix}")
    if len(outcome.drops) > 5:
        _say(console, f"not tested: {len(outcome.drops) - 5:,} more rows")
    _show_summary(outcome, console)
    _show_pairs(outcome.tested, console)


def _show_answer(one: Tested, reward: LayeredReward, console: Console) -> None:
    result = one.result
    side = f", {one.side}" if one.side else ""
    console.print(f"\n[bold]{escape(str(one.place))}{side}: {_short(result.total)}[/bold]", highlight=False)
    for title, text in (("question", one.one.question), ("answer", one.one.answer), ("expected", one.one.expected)):
        if text is not None:
            console.print(f"  [cyan]{title}:[/cyan] {escape(_cut(text))}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("score", "weight", "gate", "gives"):
        table.add_column(name, justify="right", no_wrap=True)
    failed = {line.partition(": ")[0] for line in result.errors}
    for layer in reward.settings.layers:
        gate, gated = result.gates[layer.name], result.layers[layer.name]
        score = layer_score(layer, result.components)
        numbers = (_short(score), f"{layer.weight:g}", _short(gate), _short(layer.weight * gated))
        table.add_row(layer.name, *numbers, style="" if gate else "dim")
        for part in layer.components:
            place = f"{layer.name}/{part.title}"
            given = "failed" if place in failed else _short(result.components[place])
            table.add_row(
                f"  {part.title}", given, f"{part.weight:g}", "", "", style="red" if place in failed else "dim"
            )
    console.print(table)
    for line in result.errors:
        console.print(f"  [red]failed:[/red] {escape(line)}", highlight=False)


def _show_summary(outcome: Outcome, console: Console) -> None:
    """Mean, least, most, how many got nothing and how many failed: by component, layer and in all."""
    tested, reward = outcome.tested, outcome.reward
    title = f"{len(tested):,} answer{'s' * (len(tested) != 1)}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for name in ("mean", "min", "max", "are 0", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
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
    """How often the chosen answer of a pair gets more than the rejected one."""
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
    _say(
        console,
        f"The chosen answer gets more in {more:,} of {len(pairs):,} pairs ({more / len(pairs):.0%}){equal}; "
        f"on average {margin:+.3f}.",
    )


def _spread(values: Sequence[float]) -> tuple[str, str, str, str]:
    share = sum(value == 0 for value in values) / len(values)
    return _short(sum(values) / len(values)), _short(min(values)), _short(max(values)), f"{share:.0%}"


def _short(value: float) -> str:
    return f"{value:.3f}"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"


def _say(console: Console, text: str) -> None:
    console.print(escape(text), highlight=False)
