"""How likely a model finds given answers: the sum of the log-probabilities of an answer's tokens, given its prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.evaluate import like_lengths

Ids = Sequence[int]
PromptAndAnswer = tuple[Ids, Ids]
"""The tokens of a prompt, and those of an answer to it."""


@torch.no_grad()
def log_probs(
    model: Any, answers: Sequence[PromptAndAnswer], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> list[float]:
    """log p(answer | prompt) of each, in nats, in their order; `advance` counts answers.

    Answers of like length share a batch, and logits are taken of the positions that say an answer alone.
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
    """N answers, padded on the right to T tokens."""
    padded = partial(pad_sequence, batch_first=True)
    whole = [torch.tensor([*prompt, *answer]) for prompt, answer in answers]
    ids_NT, mask_NT = padded(whole, padding_value=pad_token), padded([torch.ones_like(ids) for ids in whole])
    behind = [torch.arange(len(ids)) >= len(prompt) for ids, (prompt, _) in zip(whole, answers, strict=True)]
    is_answer_NT = padded(behind)
    # The logits at a position predict the token after it.
    first = min(len(prompt) for prompt, _ in answers) - 1
    kept = torch.arange(first, ids_NT.shape[1] - 1)
    ids_NT, mask_NT, is_answer_NT = (tensor.to(model.device) for tensor in (ids_NT, mask_NT, is_answer_NT))
    logits_NKV = _logits(model, ids_NT, mask_NT, kept.to(model.device))
    is_answer_NK = is_answer_NT[:, first + 1 :]
    wanted_NK = ids_NT[:, first + 1 :]
    # Answer by answer: of the logits, which are large, only one answer's are copied at a time.
    return [
        -float(cross_entropy(logits_KV[is_answer].float(), wanted[is_answer], reduction="none").double().sum())
        for logits_KV, wanted, is_answer in zip(logits_NKV, wanted_NK, is_answer_NK, strict=True)
    ]


def _logits(model: Any, ids_NT: torch.Tensor, mask_NT: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The logits of the kept positions; where the architecture cannot leave others out, they are cut away."""
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    can_leave_out = "logits_to_keep" in inspect.signature(bare.forward).parameters
    given = {"logits_to_keep": kept} if can_leave_out else {}
    logits: torch.Tensor = model(input_ids=ids_NT, attention_mask=mask_NT, use_cache=False, **given).logits
    return logits if can_leave_out else logits[:, kept]
