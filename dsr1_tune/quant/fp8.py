"""DeepSeek's block-FP8: read as ordinary weights, each multiplied out when it is asked for; and weights put into it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

SCALE = "_scale_inv"


def is_block_fp8(quantization: Any) -> bool:
    """Whether a config's `quantization_config` is DeepSeek's: weights in float8, a scale for each block of them."""
    return (
        isinstance(quantization, dict)
        and quantization.get("quant_method") == "fp8"
        and isinstance(quantization.get("weight_block_size"), (list, tuple))
    )


def open_weights(folder: Path, files: Iterable[str], block_size: tuple[int, int]) -> dict[str, StoredWeight]:
    """Every weight of a checkpoint by its name, not read yet; scales go with the weights that they belong to."""
    found: dict[str, Any] = {}
    for file in files:
        handle = safe_open(folder / file, framework="pt")
        found |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - a file is no mapping
    return {
        name: StoredWeight(stored, found.get(name + SCALE), block_size)
        for name, stored in found.items()
        if not name.endswith(SCALE)
    }


@dataclass(frozen=True)
class StoredWeight:
    """A tensor on disk; indexing it reads it, and multiplies it with its scales where it has some."""

    stored: Any
    scale: Any
    block_size: tuple[int, int]

    def __getitem__(self, index: Any) -> Tensor:
        weight: Tensor = self.stored[...]
        return (weight if self.scale is None else dequantize(weight, self.scale[...], self.block_size))[index]

    def get_dtype(self) -> str:
        """As safetensors names it."""
        return "F32" if self.scale is not None else str(self.stored.get_dtype())

    def get_shape(self) -> list[int]:
        """Of the weight."""
        return list(self.stored.get_shape())


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


_TABLE = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()


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


_LARGEST = torch.finfo(torch.float8_e4m3fn).max
