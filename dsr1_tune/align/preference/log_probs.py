"""How likely a model finds given answers: the sum of the log-probabilities of an answer's tokens, given its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.runs.evaluate import in_order, losses_of_batches

Ids = Sequence[int]
PromptAndAnswer = tuple[Ids, Ids]
"""The tokens of a prompt, and those of an answer to it."""


@torch.no_grad()
def log_probs(
    model: Any, answers: Sequence[PromptAndAnswer], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> list[float]:
    """log p(answer | prompt) of each, in nats, in their order; `advance` counts answers.

    Of several processes each takes its share, and all get all of it.
    """
    rows = [[*prompt, *answer] for prompt, answer in answers]
    # An answer's tokens are wanted behind the prompt's last one and those that follow it.
    wanted = [torch.tensor([IGNORED] * (len(prompt) - 1) + [*answer, IGNORED]) for prompt, answer in answers]
    found: dict[int, float] = {}
    for numbers, losses_N in losses_of_batches(model, rows, wanted, pad_token, advance):
        each = losses_N.double().split([len(answers[number][1]) for number in numbers])
        found |= {number: -float(losses.sum()) for number, losses in zip(numbers, each, strict=True)}
    return in_order(found)
