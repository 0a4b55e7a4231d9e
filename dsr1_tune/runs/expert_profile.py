"""Which experts a model uses for some data: a sample of it through the model, counted at the routers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import accumulate
from typing import Any

from dsr1_tune.config import EsftRun
from dsr1_tune.data.encode.example import Example
from dsr1_tune.models.load import Located
from dsr1_tune.moe.monitor import Routing, RoutingMonitor
from dsr1_tune.moe.select import Choice, choose
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import hash_files


def choose_for(
    config: EsftRun, model: Any, base: Located, train: Sequence[Example], narrator: Narrator
) -> tuple[Choice, Routing]:
    """The experts of `model` that the training examples use, as `config.esft` says, and the profile they come from."""
    esft = config.esft
    drawn = sample(train, esft.sample_tokens, config.schedule.seed)
    with narrator.counting("profiling", len(drawn)) as advance:
        routing = profile(model, drawn, base.tokenizer.pad_token_id, advance)
    choice = Choice(
        model=base.name,
        revision=base.revision,
        data_sha256=hash_files(config.data.all_files),
        num_tokens=sum(len(example.input_ids) for example in drawn),
        score=esft.score,
        share=esft.share,
        layers=choose(routing, esft.score, esft.share),
    )
    return choice, routing


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
