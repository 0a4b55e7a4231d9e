"""Which experts a model uses for some data: a sample of it counted at the routers, and the choice as a table."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import accumulate
from typing import Any

from rich.console import Console

from dsr1_tune.config import EsftRun
from dsr1_tune.data.encode.example import Example
from dsr1_tune.models.load import Located
from dsr1_tune.moe.monitor import Routing, RoutingMonitor
from dsr1_tune.moe.select import Choice, LayerChoice, choose
from dsr1_tune.runs.console import Narrator, plain_table
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import hash_files
from dsr1_tune.text.amount import amount

_NUM_TOP = 5


def choose_for(
    config: EsftRun, model: Any, base: Located, train: Sequence[Example], narrator: Narrator
) -> tuple[Choice, Routing]:
    """The experts of `model` that the training examples use, as `config.esft` says, and the profile they come from."""
    esft = config.esft
    drawn = sample(train, esft.sample_tokens, config.schedule.seed)
    with narrator.counting("profiling", len(drawn)) as advance:
        routing = profile(model, drawn, base.tokenizer.pad_token_id, advance)
    num_tokens, layers = sum(len(one.input_ids) for one in drawn), choose(routing, esft.score, esft.share)
    hashes = hash_files(config.data.all_files)
    return Choice(base.name, base.revision, hashes, num_tokens, esft.score, esft.share, layers), routing


def sample(examples: Sequence[Example], num_tokens: int, seed: int) -> list[Example]:
    """Examples drawn at random until they hold `num_tokens`; the same for the same seed."""
    mixed = random.Random(seed).sample(list(examples), len(examples))
    before = accumulate((len(example.input_ids) for example in mixed), initial=0)
    return [example for example, count in zip(mixed, before, strict=False) if count < num_tokens]


def profile(
    model: Any, examples: Sequence[Example], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> Routing:
    """What the model's routers choose for `examples`, padding left out; `advance` counts examples."""
    with closing(RoutingMonitor(model)) as monitor:
        held_out_loss(model, examples, pad_token, advance)
        return monitor.take()


def show_choice(choice: Choice, console: Console) -> None:
    """One line per layer: how many experts reach the share, how evenly they are used, and the most used ones."""
    score = {"gate": "gate weight", "tokens": "tokens"}[choice.score]
    title = f"The fewest experts that take {choice.share:.0%} of a layer's {score}"
    table = plain_table(title, "layer", "experts", "chosen", "they take", "entropy")
    table.add_column("most used (share)")
    for name, layer in choice.layers.items():
        taken = sum(layer.shares[number] for number in layer.chosen)
        numbers = (f"{len(layer.shares)}", f"{len(layer.chosen)}", f"{taken:.0%}", f"{entropy(layer):.2f}")
        number = next((piece for piece in name.split(".") if piece.isdigit()), name)  # all that layers' names differ by
        most_used = sorted(range(len(layer.shares)), key=lambda one: -layer.shares[one])[:_NUM_TOP]
        table.add_row(number, *numbers, ", ".join(f"{one} ({layer.shares[one]:.0%})" for one in most_used))
    console.print(table, markup=False)
    console.print(
        f"{choice.num_chosen:,} of {choice.num_experts:,} experts are chosen "
        f"({choice.num_chosen / choice.num_experts:.1%}), from {amount(choice.num_tokens, 'token')} of the data",
        highlight=False,
    )


def entropy(layer: LayerChoice) -> float:
    """Entropy of the shares over that of an even use: 1 is even, 0 is a single expert."""
    if len(layer.shares) < 2:
        return 1.0
    return sum(-share * math.log(share) for share in layer.shares if share > 0) / math.log(len(layer.shares))
