"""How likely a model finds given answers: the sum of the log-probabilities of an answer's tokens, given its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.evaluate import like_lengths, token_losses

Ids = Sequence[int]
PromptAndAnswer = tuple[Ids, Ids]
"""The tokens of a prompt, and those of an answer to it."""


@torch.no_grad()
def log_probs(
    model: Any, answers: Sequence[PromptAndAnswer], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> list[float]:
    """log p(answer | prompt) of each, in nats, in their order; `advance` counts answers.

    Answers of like length share a batch.
    """
    was_training = model.training
    model.eval()
    found = [0.0] * len(answers)
    for numbers in like_lengths([len(prompt) + len(answer) for prompt, answer in answers]):
        for number, value in zip(numbers, _of_batch(model, [answers[one] for one in numbers], pad_token), strict=True):
            found[number] = value
        advance(len(numbers))
    model.train(was_training)
    return found


def shared_log_probs(
    model: Any, answers: Sequence[PromptAndAnswer], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> list[float]:
    """The same; of several processes each takes its share, and all get all of it."""
    mine = range(group.rank(), len(answers), group.world_size())
    found = log_probs(model, [answers[number] for number in mine], pad_token, advance)
    return [value for _, value in sorted(group.all_gather(list(zip(mine, found, strict=True))))]


def _of_batch(model: Any, answers: Sequence[PromptAndAnswer], pad_token: int) -> list[float]:
    """N answers in one batch."""
    whole = [[*prompt, *answer] for prompt, answer in answers]
    # An answer's tokens are wanted behind the prompt's last one and those that follow it.
    wanted = [torch.tensor([IGNORED] * (len(prompt) - 1) + [*answer, IGNORED]) for prompt, answer in answers]
    losses = token_losses(model, whole, pad_sequence(wanted, True, IGNORED), pad_token)
    each = losses.double().split([len(answer) for _, answer in answers])
    return [-float(one.sum()) for one in each]
