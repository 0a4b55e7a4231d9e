"""The other half of a merge's proof: what both sides compute, held to what their numbers' last digits explain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError

REPORT = "do not use it, and please report it with the model's name"
TRAIN_AGAIN = "the adapter is not what the run trained: copy the run's folder again, or train it again"
NOISE_TIMES = 8.0
"""How many times the measured noise logits may differ by."""
FEW_DIGITS = 16
"""Steps of the largest logit, below which no noise is looked for."""


class NotCertified(ModelError):
    """A merge that is not what it should be."""


@dataclass(frozen=True)
class OutputCheck:
    """Base with update beside it and added to it, both computed in float32 on the same rows; and what is stored."""

    num_rows: int
    num_tokens: int
    max_difference: float
    """Largest absolute difference of any logit, before the sum is rounded to what the base stores."""
    num_beyond: int
    """Tokens with a difference beyond the bound."""
    bound: float
    """So many times what the same logits differ by where the weights' last digits are others."""
    largest_logit: float
    mean_kl: float
    """Kullback-Leibler divergence, in nats, of the next-token distributions of what was stored: what rounding costs."""
    top1_agreement: float
    """Of what was stored."""
    streamed: bool


def logits_of(model: Any, rows: list[list[int]], pad_token: int) -> list[Tensor]:
    """The logits (T, V) of each row of token ids, in float32 on the CPU, all in one forward pass.

    Sides to be compared must see the same batch: sparse attention breaks ties by the shape of what it is given.
    """
    length = max(map(len, rows))
    ids_BT = torch.tensor([row + [pad_token] * (length - len(row)) for row in rows], device=model.device)
    mask_BT = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows], device=model.device)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return [logits_TV[: len(row)].float().cpu() for row, logits_TV in zip(rows, logits_BTV, strict=True)]


def compare_outputs(
    adapted: list[Tensor], exact: list[Tensor], nudged: list[Tensor], stored: list[Tensor] | None
) -> OutputCheck:
    """Hold the logits of base and update added up in float32 against those of the base with the update beside it.

    `nudged` are those of the sum with other last digits: what they differ by is noise, and bounds what the two may
    differ by. `stored` are those of the model as it was written, where that is rounded. All are (T, V), row by row.
    """
    differences: list[float] = []
    largest = divergence = 0.0
    same = 0
    noise: list[float] = []
    for one_TV, other_TV, nudged_TV in zip(adapted, exact, nudged, strict=True):
        largest = max(largest, float(one_TV.abs().max()))
        differences += (one_TV - other_TV).abs().amax(-1).tolist()
        noise += (nudged_TV - other_TV).abs().amax(-1).tolist()
    allowed = bound(noise, largest)
    for one_TV, other_TV in zip(adapted, exact if stored is None else stored, strict=True):
        one, other = one_TV.log_softmax(-1), other_TV.log_softmax(-1)
        divergence += float((one.exp() * (one - other)).sum())
        same += int((one_TV.argmax(-1) == other_TV.argmax(-1)).sum())
    num_tokens = len(differences)
    return OutputCheck(
        num_rows=len(adapted),
        num_tokens=num_tokens,
        max_difference=max(differences),
        num_beyond=sum(difference > allowed for difference in differences),
        bound=allowed,
        largest_logit=largest,
        mean_kl=max(0.0, divergence / num_tokens),
        top1_agreement=same / num_tokens,
        streamed=False,
    )


def bound(noise: Sequence[float], largest_logit: float) -> float:
    """How far logits may be apart in float32, where only the order of additions and the last digits differ.

    `noise` is what each token's logits differ by through last digits alone; one token in a hundred, which may have gone
    to another expert by that, does not count.
    """
    usual = sorted(noise)[math.ceil(0.99 * len(noise)) - 1]
    return max(NOISE_TIMES * usual, FEW_DIGITS * torch.finfo(torch.float32).eps * largest_logit)


def check_outputs(found: OutputCheck) -> None:
    """Raise NotCertified if the outputs are further apart than they may be.

    Where two experts score all but alike, the order of additions may decide which one a token goes to: one token in a
    hundred may be beyond the bound.
    """
    if not found.num_beyond <= found.num_tokens / 100:
        raise NotCertified(
            f"the merged model's logits differ from those of the base with its update by up to "
            f"{found.max_difference:.3g}, in {found.num_beyond} of {found.num_tokens} tokens by more than "
            f"{found.bound:.3g}",
            hint=REPORT,
        )
