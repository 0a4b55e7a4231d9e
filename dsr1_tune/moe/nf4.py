"""Weights held in NF4 (QLoRA, arXiv 2305.14314): 4 bits a weight, a scale for 64 of them, and scales of the scales.

Each matrix is quantised by itself with bitsandbytes, so that any of them can be had back alone. Products save no
weights: the backward pass dequantises again.

Letters: E matrices (experts; 1 for a linear layer) of rows × cols, n = rows · cols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from bitsandbytes import functional as bnb
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 64
"""Weights that share a scale."""
SCALES_BLOCK = 256
"""Scales that share a scale."""


@dataclass(frozen=True)
class Nf4:
    """E matrices in NF4, which stand for a tensor (E, rows, cols), or (E, cols, rows) if `is_flipped`.

    packed (E, n/2) uint8 · absmax (E, n/64) uint8 · scale (E, n/64/256) float32 · offset (E) float32.
    """

    packed: Tensor
    absmax: Tensor
    scale: Tensor
    offset: Tensor
    rows: int
    cols: int
    dtype: torch.dtype
    """The number format that matrices come back in."""
    is_flipped: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of the tensor that it stands for."""
        rows, cols = (self.cols, self.rows) if self.is_flipped else (self.rows, self.cols)
        return self.packed.shape[0], rows, cols

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return sum(part.numel() * part.element_size() for part in (self.packed, self.absmax, self.scale, self.offset))

    def element_size(self) -> int:
        """Bytes of a number as it comes back."""
        return self.dtype.itemsize

    def transpose(self, one: int, other: int) -> Nf4:
        """A view with rows and columns exchanged, as of a 3-D tensor."""
        assert {one, other} == {1, 2}
        return replace(self, is_flipped=not self.is_flipped)

    def __getitem__(self, index: int) -> Tensor:
        """One matrix, dequantised."""
        return self.matrices(slice(index, index + 1))[0]

    def matrices(self, index: slice | Sequence[int]) -> Tensor:
        """Some of the matrices, dequantised: (N, rows, cols), or a view (N, cols, rows) if flipped."""
        if not isinstance(index, slice):
            index = torch.tensor(index, device=self.packed.device)
        # Scales of one matrix need not fill their last block, so they are unfolded here, by rows.
        scale = self.scale[index].repeat_interleave(SCALES_BLOCK, dim=1)[:, : self.absmax.shape[1]]
        # Product, then sum, not both at once: to the last bit what bitsandbytes makes of them.
        absmax = (_scale_map(self.packed.device)[self.absmax[index].int()] * scale).add_(self.offset[index, None])
        packed = self.packed[index]
        flat = torch.ops.bitsandbytes.dequantize_4bit(
            packed.reshape(-1), absmax.reshape(-1), BLOCK, "nf4", (packed.shape[0] * self.rows, self.cols), self.dtype
        )
        matrices = flat.view(-1, self.rows, self.cols)
        return matrices.transpose(1, 2) if self.is_flipped else matrices


@cache
def _scale_map(device: torch.device) -> Tensor:
    """The 256 values that bitsandbytes quantises scales to."""
    return bnb.create_dynamic_map().to(device)


def fits(rows: int, cols: int) -> bool:
    """Whether a matrix divides into whole blocks."""
    return rows * cols % BLOCK == 0


def sizes(num_matrices: int, rows: int, cols: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each of Nf4's four tensors, and of `error`, by name."""
    blocks = rows * cols // BLOCK
    return {
        "packed": ((num_matrices, rows * cols // 2), torch.uint8),
        "absmax": ((num_matrices, blocks), torch.uint8),
        "scale": ((num_matrices, math.ceil(blocks / SCALES_BLOCK)), torch.float32),
        "offset": ((num_matrices,), torch.float32),
        "error": ((num_matrices,), torch.float32),
    }


def quantise(weight: Tensor) -> dict[str, Tensor]:
    """(E, rows, cols) → the tensors that `sizes` names; `error` is |W - W'| / |W| of each matrix (Frobenius norms)."""
    num, rows, cols = weight.shape
    out = {name: torch.empty(shape, dtype=dtype, device=weight.device) for name, (shape, dtype) in
           sizes(num, rows, cols).items()}  # fmt: skip
    for index, matrix in enumerate(weight):
        packed, state = bnb.quantize_4bit(
            matrix.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        assert state.state2.blocksize == SCALES_BLOCK
        out["packed"][index] = packed.view(-1)
        out["absmax"][index], out["scale"][index] = state.absmax, state.state2.absmax
        out["offset"][index] = state.offset
    held = Nf4(out["packed"], out["absmax"], out["scale"], out["offset"], rows, cols, torch.float32)
    for index, matrix in enumerate(weight):
        exact = matrix.float()
        out["error"][index] = (held[index] - exact).norm() / exact.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return out


# --- in a module -----------------------------------------------------------------------------------------------------


def reserve(module: nn.Module, name: str) -> None:
    """Give `module` the buffers that its weight `name` will be held in, without memory yet."""
    for part, (shape, dtype) in sizes(*_as_matrices(getattr(module, name)).shape).items():
        module.register_buffer(f"{name}_{part}", torch.empty(shape, dtype=dtype, device="meta"))


def as_buffers(name: str, weight: Tensor) -> dict[str, Tensor]:
    """`weight` quantised, by the names that its module holds it under, and the placeholder that stands for it."""
    parts = {f"{name}_{part}": tensor for part, tensor in quantise(_as_matrices(weight)).items()}
    return parts | {name: placeholder(weight.shape, weight.dtype, weight.device)}


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A frozen parameter of the weight's shape in the memory of one number.

    Whatever asks for a weight's shape, dtype or device (PEFT, the coverage audit) is answered; whatever computes with
    it gets NaN, and so cannot go wrong in silence.
    """
    return nn.Parameter(torch.full((1,), math.nan, dtype=dtype, device=device).expand(*shape), requires_grad=False)


def held_weight(module: nn.Module, name: str) -> Tensor | Nf4:
    """The weight `name` of a module as products take it: as it is, or in NF4."""
    weight: Tensor = getattr(module, name)
    if not is_held(module, name):
        return weight
    packed, absmax, scale, offset = (getattr(module, f"{name}_{part}") for part in _PARTS)
    rows, cols = weight.shape[-2:]
    return Nf4(packed, absmax, scale, offset, rows, cols, weight.dtype)


_PARTS = ("packed", "absmax", "scale", "offset")


def is_held(module: nn.Module, name: str) -> bool:
    """Whether a module holds its weight `name` in NF4."""
    return f"{name}_packed" in module._buffers


def renew_placeholder(module: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Put the placeholder where the weight's 4 bits are, in the memory of one number again."""
    old = getattr(module, name)
    new = placeholder(old.shape, dtype or old.dtype, getattr(module, f"{name}_packed").device)
    vars(new).update(vars(old), _is_hf_initialized=True)  # what DDP has noted on it, say
    setattr(module, name, new)


class _Holding(nn.Module):
    """A module that holds weights in NF4: moved or cast, its placeholders stay small and its scales exact."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        held = [name for name in self._parameters if is_held(self, name)]
        exact = {f"{name}_{part}" for name in held for part in ("scale", "offset", "error")}
        apart: dict[str, Tensor] = {name: self._buffers.pop(name) for name in exact}
        # What a cast makes of the weights' own format, told by one number of it.
        like = {name: fn(getattr(self, name).detach().as_strided((1,), (1,))) for name in held}
        weights = {name: self._parameters[name] for name in held}
        for name in held:
            self._parameters[name] = None
        super()._apply(fn, recurse)
        for name in held:
            self._parameters[name] = weights[name]
            renew_placeholder(self, name, like[name].dtype)
        for name, buffer in apart.items():
            self._buffers[name] = buffer.to(self._buffers[f"{name.rpartition('_')[0]}_packed"].device)
        return self


@cache
def holding(kind: Any) -> Any:
    """The same class of modules for those that hold weights in NF4."""
    if issubclass(kind, _Holding):
        return kind
    return type(kind.__name__, (_Holding, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def keep_placeholder_out(module: nn.Module, name: str) -> None:
    """Leave the placeholder out of the module's state_dict(): there is nothing in it to save."""

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state.pop(f"{prefix}{name}", None)

    module.register_state_dict_post_hook(drop)


def _as_matrices(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 3 else weight.unsqueeze(0)


class Nf4Linear(_Holding, nn.Linear):
    """A linear layer with its weight in NF4; `weight` is a placeholder."""

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape, last dimension `in_features`."""
        y: Tensor = _LinearProduct.apply(x, self.bias, held_weight(self, "weight"))
        return y


class _LinearProduct(torch.autograd.Function):
    """x Wᵀ + b with a frozen W that is dequantised for each product and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Nf4) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x.to(weight.dtype), weight[0], bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        dx = (dy.to(ctx.weight.dtype) @ ctx.weight[0]).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dx, dbias, None
