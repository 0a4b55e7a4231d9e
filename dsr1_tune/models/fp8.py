"""DeepSeek's block-FP8 checkpoints, read as ordinary weights: each tensor is multiplied out when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

_SCALE = "_scale_inv"


def is_block_fp8(quantisation: Any) -> bool:
    """Whether a config's `quantization_config` is DeepSeek's: weights in float8, a scale for each block of them."""
    return (
        isinstance(quantisation, dict)
        and quantisation.get("quant_method") == "fp8"
        and isinstance(quantisation.get("weight_block_size"), (list, tuple))
    )


def open_weights(folder: Path, files: Iterable[str], block_size: tuple[int, int]) -> dict[str, StoredWeight]:
    """Every weight of a checkpoint by its name, not read yet; scales go with the weights that they belong to."""
    found: dict[str, Any] = {}
    for file in files:
        handle = safe_open(folder / file, framework="pt")
        found |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - a file is no mapping
    return {
        name: StoredWeight(stored, found.get(name + _SCALE), block_size)
        for name, stored in found.items()
        if not name.endswith(_SCALE)
    }


@dataclass(frozen=True)
class StoredWeight:
    """A tensor on disk; indexing it reads it, and multiplies it with its scales where it has some."""

    stored: Any
    scale: Any
    block_size: tuple[int, int]

    def __getitem__(self, index: Any) -> Tensor:
        weight: Tensor = self.stored[...]
        return (weight if self.scale is None else multiply_out(weight, self.scale[...], self.block_size))[index]

    def get_dtype(self) -> str:
        """As safetensors names it."""
        return "F32" if self.scale is not None else str(self.stored.get_dtype())

    def get_shape(self) -> list[int]:
        """Of the weight."""
        return list(self.stored.get_shape())


def multiply_out(weight: Tensor, scale_inv: Tensor, block_size: tuple[int, int]) -> Tensor:
    """Float8 (rows, cols) times the scale of each block, the last ones cut where they overhang; in float32."""
    rows, cols = weight.shape
    scale = scale_inv.float().repeat_interleave(block_size[0], dim=0)[:rows]
    exact = weight.float()
    for column, start in enumerate(range(0, cols, block_size[1])):
        # By columns of blocks: scales spread over both would be a second tensor of the weight's size.
        exact[:, start : start + block_size[1]].mul_(scale[:, column : column + 1])
    return exact
