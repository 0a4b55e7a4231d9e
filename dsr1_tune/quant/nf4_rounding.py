"""Rounding to NF4's 16 numbers on a CPU: to the last bit what bitsandbytes gives, several times as fast.

bitsandbytes searches the boundaries between the numbers for each weight. Here [-1, 1] is cut into 255 cells, none of
which holds more than one boundary: a weight's cell tells its code but for one comparison.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from bitsandbytes import functional as bnb
from numpy.typing import NDArray
from torch import Tensor

_CELLS = 127.0
"""Cells in one unit."""
_PIECE = 1 << 18
"""Weights at a time, few enough for the processor's cache."""


def round_to_codes(matrix: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """A matrix of a multiple of `block` weights → two codes in each byte (n/2) uint8, the blocks' scales float32."""
    flat = matrix.reshape(-1, block)
    packed = torch.empty(flat.numel() // 2, dtype=torch.uint8)
    scales = torch.empty(len(flat))
    step = max(1, _PIECE // block)
    for first in range(0, len(flat), step):
        piece = flat[first : first + step].float()
        scale = piece.abs().amax(1)
        # As bitsandbytes does it: times the inverse, not divided by the scale.
        unit = (piece * (1.0 / scale.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
        codes = _codes(unit).view(-1, 2)
        start = first * block // 2
        packed[start : start + len(codes)] = (codes[:, 0] << 4) | codes[:, 1]
        scales[first : first + step] = scale
    return packed, scales


def _codes(unit: Tensor) -> Tensor:
    """Numbers from -1 to 1 → how many boundaries are below each."""
    below, boundary = _cells()
    cell = (unit + 1).mul_(_CELLS).to(torch.uint8).numpy()
    return torch.from_numpy(np.take(below, cell) + (unit.numpy() > np.take(boundary, cell)))


@cache
def _cells() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """For each cell the number of boundaries below it, and the one in it (or infinity)."""
    numbers = bnb.get_4bit_type("nf4", device="cpu")
    boundaries = (numbers[1:] + numbers[:-1]) / 2
    place = (boundaries.double() + 1) * _CELLS
    cell_of = place.to(torch.uint8)
    # One boundary a cell, and none where rounding might put a weight into the neighbouring one.
    assert len(cell_of.unique()) == len(boundaries) and (place - place.round()).abs().min() > 1e-3
    below = (cell_of < torch.arange(256).unsqueeze(1)).sum(1).to(torch.uint8)
    boundary = torch.full((256,), torch.inf)
    boundary[cell_of.long()] = boundaries
    return below.numpy(), boundary.numpy()
