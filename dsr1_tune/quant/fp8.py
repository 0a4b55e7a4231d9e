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


def to_blocks(weight: Tensor, block_size: tuple[int, int] = (128, 128)) -> tuple[Tensor, Tensor]:
    """(rows, cols) → its float8 (E4M3) and the float32 scale of each block, (⌈rows/128⌉, ⌈cols/128⌉).

    The largest number of a block becomes the largest that float8 holds; `dequantize` is the way back. The last
    blocks may overhang.
    """
    (rows, cols), (high, wide) = weight.shape, block_size
    stored = torch.empty(rows, cols, dtype=torch.float8_e4m3fn, device=weight.device)
    scale_inv = torch.empty(-(-rows // high), -(-cols // wide), device=weight.device)
    for row, top in enumerate(range(0, rows, high)):
        # A row of blocks at a time: a whole expert in float32, twice over, would be four times its size.
        band = weight[top : top + high].float()
        padded = torch.nn.functional.pad(band, (0, -cols % wide)).view(len(band), -1, wide)
        largest = padded.abs().amax(dim=(0, 2))
        scale = torch.where(largest > 0, largest / _LARGEST, 1.0)  # a block of zeros needs no scale
        # Rounding may put the quotient just beyond the largest number, which float8 has no infinity for.
        quotient = (padded / scale[:, None]).clamp_(-_LARGEST, _LARGEST)
        stored[top : top + high] = quotient.view(len(band), -1)[:, :cols].to(stored.dtype)
        scale_inv[row] = scale
    return stored, scale_inv
