"""How far apart right results may be: what a model's outputs change by where its numbers are moved by their last digit.

A sum added up in another order, or a weight rounded once more, changes the last digit of what is computed; what becomes
of that depends on the model, its depth and the length of its rows. So it is measured, on the model and rows at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from dsr1_tune.moe.shared_factors import shards_by_parameter

SAMPLES = 3
NOISE_DEVIATIONS = 5.0
"""How many deviations of its noise a loss may be off."""
_PIECE = 1 << 22


def nudged(weight: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """A copy whose numbers are one of `dtype`'s steps up or down by chance, one in twelve of them.

    Their variance is that of rounding to `dtype`; what is no matrix of numbers comes back as it is.
    """
    is_placeholder = 0 in weight.stride()  # one number in the place of a weight that is held in fewer bits
    if weight.dim() < 2 or not weight.is_floating_point() or weight.element_size() < 2 or is_placeholder:
        return weight
    moved = weight.detach().clone()
    flat = moved.view(-1) if moved.is_contiguous() else moved.reshape(-1)
    for piece in flat.split(_PIECE):
        chance = torch.randint(0, 24, piece.shape, dtype=torch.int8, generator=generator).to(piece.device)
        exponent = torch.frexp(piece.float()).exponent - 1
        step = torch.ldexp(torch.full_like(piece, torch.finfo(dtype).eps, dtype=torch.float32), exponent)
        piece.add_(((chance == 0).float() - (chance == 1).float()) * step * (piece != 0))
    return flat.view(weight.shape)


def loss_noise(model: Any, measure: Callable[[], float], dtype: torch.dtype, first: float) -> float:
    """By how much a loss may differ where only rounding to `dtype` does: the deviation of a single measurement.

    `measure` gives the loss of `model`, which was `first` before; the model's weights are moved in place, and stay so.
    """
    losses, shards = [first], shards_by_parameter(model)
    for seed in range(SAMPLES):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # The same in all processes for what all hold, and not for the experts of each.
                shard = shards.get(id(parameter))
                drawn = crc32(f"{seed} {name} {shard.parallel.rank if shard else 0}".encode())
                moved = nudged(parameter, dtype, torch.Generator().manual_seed(drawn))
                if moved is not parameter:
                    parameter.data.copy_(moved)
        losses.append(measure())
    steps = [(after - before) ** 2 for before, after in pairwise(losses)]
    return math.sqrt(sum(steps) / SAMPLES)
