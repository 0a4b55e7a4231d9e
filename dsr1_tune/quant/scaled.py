"""Weights in 8 or 4 bits with a scale for all of them, for a row, for a group or for a block; FP4's 16 numbers.

Letters: (..., rows, cols) a weight, with experts first where one tensor holds several.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1, the lower half of its codes; the upper half is the same with a minus (OCP Microscaling Formats 1.0, 5.3.3)."""
_SIGNED = np.array([*FP4, *(-number for number in FP4)], dtype=np.float32)
_PAIRS = np.stack([_SIGNED[np.arange(256) & 0xF], _SIGNED[np.arange(256) >> 4]], axis=1)
_BIAS = 127


def unpack_fp4(packed: Tensor) -> Tensor:
    """uint8 or int8 (..., n) → float32 (..., 2n): two codes in a byte, the lower four bits first."""
    pairs = np.take(_PAIRS, packed.contiguous().view(torch.uint8).numpy(), axis=0)
    return torch.from_numpy(pairs).flatten(-2)


def as_numbers(scale: Tensor) -> Tensor:
    """Scales in float32. Bytes are E8M0: powers of two, with the exponent plus 127."""
    if scale.dtype == torch.float8_e8m0fnu:
        scale = scale.view(torch.uint8)
    if scale.dtype != torch.uint8:
        return scale.float()
    power = torch.ldexp(torch.ones(scale.shape), scale.to(torch.int32) - _BIAS)
    return torch.where(scale == 255, math.nan, power)


def mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """(rows, blocks, 16) uint8 and (rows, blocks) E8M0 → (rows, blocks · 32) in float32.

    One expert of what gpt-oss is published in; transformers' `convert_moe_packed_tensors` gives the same numbers.
    """
    return unpack_fp4(blocks).mul_(as_numbers(scales).unsqueeze(-1)).flatten(-2)


def block_of(
    shape: tuple[int, ...], scale: tuple[int, ...], block_size: tuple[int, int] | None = None
) -> tuple[int, int] | None:
    """How many (rows, cols) of a weight share a scale; None where scales of that shape do not go with it.

    The last blocks may overhang if they are of the given `block_size`; without one their sides are powers of two.
    """
    rows, cols = shape[-2:]
    full = full_shape(scale, len(shape))
    if len(full) != len(shape) or any(one not in (1, size) for one, size in zip(full[:-2], shape[:-2], strict=True)):
        return None
    num_rows, num_cols = full[-2:]
    if block_size and (num_rows, num_cols) == (-(-rows // block_size[0]), -(-cols // block_size[1])):
        return block_size
    if not num_rows or not num_cols or rows % num_rows or cols % num_cols:
        return None
    high, wide = rows // num_rows, cols // num_cols
    # With blocks in both directions the last may overhang, so that another size than the true one divides.
    is_sure = 1 in (num_rows, num_cols, high, wide) or (high & high - 1 == 0 and wide & wide - 1 == 0)
    return (high, wide) if is_sure else None


def full_shape(scale: tuple[int, ...], num_dims: int) -> tuple[int, ...]:
    """The shape of scales with as many dimensions as their weight: one for each row, say, is (rows, 1)."""
    if math.prod(scale) == 1:
        return (1,) * num_dims
    return scale + (1,) * (num_dims - len(scale))


def scaled(weight: Tensor, scale: Tensor, block: tuple[int, int], zero: Tensor | None = None) -> Tensor:
    """(weight - zero) · scale, each for a block; `weight` is float32, and is changed."""
    for numbers, apply in ((zero, Tensor.sub_), (scale, Tensor.mul_)):
        if numbers is not None:
            _spread(weight, numbers.reshape(full_shape(tuple(numbers.shape), weight.dim())), block, apply)
    return weight


def _spread(weight: Tensor, numbers: Tensor, block: tuple[int, int], apply: object) -> None:
    """Spread over rows alone: over both, the numbers would be a second tensor of the weight's size."""
    rows, cols = weight.shape[-2:]
    high, wide = block
    by_row = numbers.repeat_interleave(high, dim=-2)[..., :rows, :]
    whole = cols // wide
    assert callable(apply)
    apply(weight[..., : whole * wide].unflatten(-1, (whole, wide)), by_row[..., :whole, None])
    if whole * wide < cols:
        apply(weight[..., whole * wide :], by_row[..., whole:])
