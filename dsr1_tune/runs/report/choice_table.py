"""A choice of experts as a table on the terminal."""

from __future__ import annotations

import math

from rich.console import Console

from dsr1_tune.moe.select import Choice, LayerChoice
from dsr1_tune.runs.console import plain_table

_NUM_TOP = 5


def show(choice: Choice, console: Console) -> None:
    """One line per layer: how many experts reach the share, how evenly they are used, and the most used ones."""
    score = {"gate": "gate weight", "tokens": "tokens"}[choice.score]
    title = f"The fewest experts that take {choice.share:.0%} of a layer's {score}"
    table = plain_table(title, "layer", "experts", "chosen", "they take", "entropy")
    table.add_column("most used (share)")
    for name, layer in choice.layers.items():
        taken = sum(layer.shares[number] for number in layer.chosen)
        numbers = (f"{len(layer.shares)}", f"{len(layer.chosen)}", f"{taken:.0%}", f"{entropy(layer):.2f}")
        number = next((piece for piece in name.split(".") if piece.isdigit()), name)  # all that layers' names differ by
        table.add_row(number, *numbers, _most_used(layer))
    console.print(table, markup=False)
    console.print(
        f"{choice.num_chosen:,} of {choice.num_experts:,} experts are chosen "
        f"({choice.num_chosen / choice.num_experts:.1%}), from {choice.num_tokens:,} tokens of the data",
        highlight=False,
    )


def entropy(layer: LayerChoice) -> float:
    """Entropy of the shares over that of an even use: 1 is even, 0 is a single expert."""
    if len(layer.shares) < 2:
        return 1.0
    return sum(-share * math.log(share) for share in layer.shares if share > 0) / math.log(len(layer.shares))


def _most_used(layer: LayerChoice) -> str:
    order = sorted(range(len(layer.shares)), key=lambda number: -layer.shares[number])
    return ", ".join(f"{number} ({layer.shares[number]:.0%})" for number in order[:_NUM_TOP])
