"""DeepSeek's block-FP8: float8 weights with a scale for each block, dequantized to float32 and made of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SCALE = "_scale_inv"
"""What is put behind a weight's name for its scales."""
_TABLE = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_FRACTION_BITS, _SMALLEST_EXPONENT = 3, -6
_STILL_FITS = 1 + 1 / 28
"""Up to half a step beyond the largest number, which is rounded to that."""
_TINY = 1e-4
"""Of a step."""


def is_block_fp8(quantization: Any) -> bool:
    """Whether a config's `quantization_config` is DeepSeek's: weights in float8, a scale for each block of them."""
    return (
        isinstance(quantization, dict)
        and quantization.get("quant_method") == "fp8"
        and isinstance(quantization.get("weight_block_size"), (list, tuple))
    )


def dequantize(weight: Tensor, scale_inv: Tensor, block_size: tuple[int, int]) -> Tensor:
    """Float8 (rows, cols) times the scale of each block, the last ones cut where they overhang; in float32."""
    cols = weight.shape[1]
    exact = _as_float32(weight)
    scale = scale_inv.float().repeat_interleave(block_size[1], dim=1)[:, :cols]
    for row, top in enumerate(range(0, len(weight), block_size[0])):
        # By rows of blocks: scales spread over both would be a second tensor of the weight's size.
        exact[top : top + block_size[0]].mul_(scale[row])
    return exact


def _as_float32(weight: Tensor) -> Tensor:
    """On a CPU by a table of float8's 256 numbers, which is four times as fast as torch's own conversion."""
    if weight.device.type != "cpu" or weight.dtype != torch.float8_e4m3fn:
        return weight.float()
    return torch.from_numpy(np.take(_TABLE, weight.view(torch.uint8).numpy()))


def to_blocks(
    weight: Tensor,
    block_size: tuple[int, int] = (128, 128),
    seed: int | None = None,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(rows, cols) → its float8 (E4M3) and the float32 scale of each block, (⌈rows/128⌉, ⌈cols/128⌉).

    The largest number of a block becomes the largest that float8 holds; `dequantize` is the way back. The last
    blocks may overhang. Given a block's earlier scale in `scales`, that is kept where it still fits.

    Every number is rounded to the nearest. That loses what was added to numbers that lay in float8 already, as long as
    it is less than half a step: with a `seed` such blocks are rounded up or down by chance, so that the mean of what
    is stored is what was given. The same seed gives the same bytes.
    """
    (rows, cols), (high, wide) = weight.shape, block_size
    stored = torch.empty(rows, cols, dtype=torch.float8_e4m3fn, device=weight.device)
    scale_inv = torch.empty(-(-rows // high), -(-cols // wide), device=weight.device)
    generator = None if seed is None else torch.Generator(weight.device).manual_seed(seed)
    for row, top in enumerate(range(0, rows, high)):
        # A row of blocks at a time: a whole expert in float32, twice over, would be four times its size.
        band = weight[top : top + high].float()
        padded = torch.nn.functional.pad(band, (0, -cols % wide)).view(len(band), -1, wide)
        largest = padded.abs().amax(dim=(0, 2))
        scale = torch.where(largest > 0, largest / _LARGEST, 1.0)  # a block of zeros needs no scale
        if scales is not None:
            earlier = scales[row].float()
            scale = torch.where(largest <= earlier * _LARGEST * _STILL_FITS, earlier, scale)
        # Rounding may put the quotient just beyond the largest number, which float8 has no infinity for.
        quotient = (padded / scale[:, None]).clamp_(-_LARGEST, _LARGEST)
        if generator is not None:
            quotient = _by_chance(quotient, cols, generator)
        stored[top : top + high] = quotient.view(len(band), -1)[:, :cols].to(stored.dtype)
        scale_inv[row] = scale
    return stored, scale_inv


def _by_chance(quotient: Tensor, cols: int, generator: torch.Generator) -> Tensor:
    """Numbers of float8, in the blocks that lie nearer to those than chance would put them; the others as they are.

    `quotient` is a row of blocks, (height, blocks, width), of which the last may reach beyond `cols`.
    """
    size = quotient.abs()
    exponent = torch.frexp(size).exponent.clamp_(min=_SMALLEST_EXPONENT + 1)
    step = torch.ldexp(torch.ones_like(size), exponent - 1 - _FRACTION_BITS)
    steps = size / step  # without error, as a step is a power of two
    below = steps.floor()
    rest = steps - below
    # What the scale's own rounding adds to numbers that float8 holds is no update.
    rest = torch.where(rest < _TINY, 0.0, torch.where(rest > 1 - _TINY, 1.0, rest))
    wide = quotient.shape[2]
    inside = (torch.arange(quotient.shape[1] * wide, device=size.device) < cols).view(1, -1, wide)
    number = len(quotient) * inside.sum(dim=(0, 2))
    distance = (torch.minimum(rest, 1 - rest) * inside).sum(dim=(0, 2)) / number
    is_near = distance < 0.25 - 4 * 0.1443 / number.sqrt()  # mean and deviation of a distance that is uniform
    up = torch.rand(rest.shape, generator=generator, device=rest.device) < rest
    return torch.where(is_near[:, None], ((below + up) * step).copysign_(quotient), quotient)
