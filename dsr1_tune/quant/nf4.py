"""Weights held in NF4 (QLoRA, arXiv 2305.14314): 4 bits a weight, a scale for 64 of them, and scales of the scales.

Each matrix is quantized by itself with bitsandbytes, so that any of them can be had back alone. Products save no
weights: the backward pass dequantizes again.

A matrix may have been quantized in P parts, one below the other, as gate and up are where each is a tensor on disk.
Letters: E matrices (experts; 1 for a linear layer) of rows × cols, M = E · P, n = rows · cols / P.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from bitsandbytes import functional as bnb
from torch import Tensor, nn
from torch.nn import functional

from dsr1_tune.errors import ModelError
from dsr1_tune.quant.int8 import Int8
from dsr1_tune.quant.nf4_rounding import round_to_codes

BLOCK = 64
"""Weights that share a scale."""
SCALES_BLOCK = 256
"""Scales that share a scale."""
_TINY = torch.finfo(torch.float32).tiny
_CHECKED = 4096
"""Blocks of a matrix that are rounded a second time, to hold its error against."""
_ALLOWED, _ALLOWED_AT_LEAST = 1.5, 0.01
"""How far off a matrix may come back: as a multiple of what it has to be, and where that is next to nothing."""


@dataclass(frozen=True)
class Nf4:
    """E matrices in NF4, which stand for a tensor (E, rows, cols), or (E, cols, rows) if `is_flipped`.

    packed (M, n/2) uint8 · absmax (M, n/64) uint8 · scale (M, n/64/256) float32 · offset (M) float32.
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
    num_parts: int = 1
    """P, how many parts each matrix was quantized in."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """As of the tensor that it stands for."""
        rows, cols = (self.cols, self.rows) if self.is_flipped else (self.rows, self.cols)
        return self.packed.shape[0] // self.num_parts, rows, cols

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
        """One matrix, dequantized."""
        return self.matrices(slice(index, index + 1))[0]

    def matrices(self, index: slice | Sequence[int] | Tensor) -> Tensor:
        """Some of the matrices, dequantized: (N, rows, cols), or a view (N, cols, rows) if flipped."""
        index = self._parts(index)
        # Scales of one matrix need not fill their last block, so they are unfolded here, by rows.
        scale = self.scale[index].repeat_interleave(SCALES_BLOCK, dim=1)[:, : self.absmax.shape[1]]
        # Product, then sum, not both at once: to the last bit what bitsandbytes makes of them.
        absmax = (scale_map(self.packed.device)[self.absmax[index].int()] * scale).add_(self.offset[index, None])
        packed = self.packed[index]
        flat = torch.ops.bitsandbytes.dequantize_4bit(
            packed.reshape(-1),
            absmax.reshape(-1),
            BLOCK,
            "nf4",
            (absmax.numel(), BLOCK),  # on a CPU a block must lie in one row of what is asked for
            self.dtype,
        )
        matrices = flat.view(-1, self.rows, self.cols)
        return matrices.transpose(1, 2) if self.is_flipped else matrices

    def _parts(self, index: slice | Sequence[int] | Tensor) -> slice | Tensor:
        """Where the parts of some of the matrices are."""
        if isinstance(index, slice):
            first, last, step = index.indices(self.packed.shape[0] // self.num_parts)
            assert step == 1
            return slice(first * self.num_parts, last * self.num_parts)
        chosen = torch.as_tensor(index, device=self.packed.device)
        if self.num_parts == 1:
            return chosen
        return (chosen[:, None] * self.num_parts + torch.arange(self.num_parts, device=chosen.device)).view(-1)


@cache
def scale_map(device: torch.device) -> Tensor:
    """The 256 values that bitsandbytes quantizes scales to."""
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


def quantize(weight: Tensor, name: str = "a weight") -> dict[str, Tensor]:
    """(E, rows, cols) → the tensors that `sizes` names; `error` is |W - W'| / |W| of each matrix (Frobenius norms).

    Raises ModelError, calling it by `name`, if a matrix comes back further off than NF4 has to be.
    """
    num, rows, cols = weight.shape
    out = {name: torch.empty(shape, dtype=dtype, device=weight.device) for name, (shape, dtype) in
           sizes(num, rows, cols).items()}  # fmt: skip
    for index, matrix in enumerate(weight):
        out["packed"][index], absmax = _rounded(matrix)
        out["offset"][index] = offset = absmax.mean()
        out["absmax"][index], scales = bnb.quantize_blockwise(absmax - offset, blocksize=SCALES_BLOCK)
        out["scale"][index] = scales.absmax
    held = Nf4(out["packed"], out["absmax"], out["scale"], out["offset"], rows, cols, torch.float32)
    for index, matrix in enumerate(weight):
        exact, back = matrix.float(), held[index]
        out["error"][index] = (back - exact).norm() / exact.norm().clamp(min=_TINY)
        check_error(exact, back, name)
    return out


def check_error(exact: Tensor, back: Tensor, name: str) -> None:
    """Raise ModelError if a matrix comes back from NF4 further off than its own numbers have to. NaN is let through.

    Held against blocks drawn at random, which plain torch rounds as NF4 is defined, scales included.
    """
    blocks, back = exact.reshape(-1, BLOCK), back.reshape(-1, BLOCK)
    largest = blocks.abs().amax(1)
    scales = _rounded_scales(largest)
    if len(blocks) > _CHECKED:
        drawn = torch.randint(len(blocks), (_CHECKED,), generator=torch.Generator().manual_seed(0)).to(blocks.device)
        blocks, back, largest, scales = blocks[drawn], back[drawn], largest[drawn], scales[drawn]
    numbers = _nearest(blocks / largest.clamp(min=_TINY)[:, None], bnb.get_4bit_type("nf4", device=blocks.device))
    size = blocks.norm().clamp(min=_TINY)
    must, found = (float((one - blocks).norm() / size) for one in (numbers * scales[:, None], back))
    if found > max(_ALLOWED * must, _ALLOWED_AT_LEAST):
        rows, cols = exact.shape
        raise ModelError(
            f"{name} ({rows} × {cols}): comes back {found:.1%} off from NF4, where its numbers must be {must:.1%} off: "
            "bitsandbytes does not give back here what it was given",
            hint="do without 4 bits, and please report it with the model's name and `dsr1-tune doctor`",
        )


def _rounded_scales(largest: Tensor) -> Tensor:
    """The scales of all blocks, in 8 bits: their mean, and what each differs from it, in blocks of 256."""
    offset = largest.mean()
    padded = functional.pad(largest - offset, (0, -len(largest) % SCALES_BLOCK)).view(-1, SCALES_BLOCK)
    widest = padded.abs().amax(1, keepdim=True).clamp(min=_TINY)
    return (_nearest(padded / widest, scale_map(largest.device)) * widest).view(-1)[: len(largest)] + offset


def _nearest(wanted: Tensor, numbers: Tensor) -> Tensor:
    """For each the nearest of some numbers in ascending order."""
    return numbers[torch.bucketize(wanted, (numbers[1:] + numbers[:-1]) / 2)]


def _rounded(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The packed codes, flat, and the largest magnitude of each block."""
    if matrix.device.type == "cpu":
        return round_to_codes(matrix, BLOCK)
    packed, absmax = torch.ops.bitsandbytes.quantize_4bit(matrix.contiguous(), BLOCK, "nf4", torch.uint8)
    return packed.view(-1), absmax


# --- in a module -----------------------------------------------------------------------------------------------------


def reserve(module: nn.Module, name: str) -> None:
    """Give `module` the buffers that its weight `name` will be held in, without memory yet."""
    reserve_as(module, name, sizes(*_as_matrices(getattr(module, name)).shape))


def reserve_as(module: nn.Module, name: str, wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """The same for buffers of any shapes and dtypes, by the part of the name that follows the weight's."""
    for part, (shape, dtype) in wanted.items():
        module.register_buffer(f"{name}_{part}", torch.empty(shape, dtype=dtype, device="meta"))


def as_buffers(name: str, weight: Tensor, owner: str = "") -> dict[str, Tensor]:
    """`weight` quantized, by the names that `owner`, its module, holds it under, and the placeholder for it."""
    full_name = f"{owner}.{name}" if owner else name
    parts = {f"{name}_{part}": tensor for part, tensor in quantize(_as_matrices(weight), full_name).items()}
    return parts | {name: placeholder(weight.shape, weight.dtype, weight.device)}


def placeholder(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """A frozen parameter of the weight's shape in the memory of one number.

    Whatever asks for a weight's shape, dtype or device (PEFT, the coverage audit) is answered; whatever computes with
    it gets NaN, and so cannot go wrong in silence.
    """
    return nn.Parameter(torch.full((1,), math.nan, dtype=dtype, device=device).expand(*shape), requires_grad=False)


def put_placeholder(module: nn.Module, name: str) -> None:
    """Put a placeholder in a weight's place before loading: it takes no memory, and is neither loaded nor saved."""
    weight = getattr(module, name)
    stand_in = placeholder(weight.shape, weight.dtype, torch.device("cpu"))
    stand_in._is_hf_initialized = True
    setattr(module, name, stand_in)
    keep_placeholder_out(module, name)


QuantizedWeight = Nf4 | Int8
"""Matrices that are dequantized for each use."""


def stored_weight(module: nn.Module, name: str) -> Tensor | QuantizedWeight:
    """The weight `name` of a module as products take it: as it is, or in NF4 or int8."""
    weight: Tensor = getattr(module, name)
    if not is_held(module, name):
        return weight
    packed = getattr(module, f"{name}_packed")
    if packed.dtype == torch.int8:
        return Int8(packed, getattr(module, f"{name}_scale"), weight.dtype)
    absmax, scale, offset = (getattr(module, f"{name}_{part}") for part in ("absmax", "scale", "offset"))
    rows, cols = weight.shape[-2:]
    num_parts = packed.shape[0] // math.prod(weight.shape[:-2])
    return Nf4(packed, absmax, scale, offset, rows, cols, weight.dtype, num_parts=num_parts)


def is_held(module: nn.Module, name: str) -> bool:
    """Whether a module holds its weight `name` in NF4 or int8."""
    return f"{name}_packed" in module._buffers


def renew_placeholder(module: nn.Module, name: str, dtype: torch.dtype | None = None) -> None:
    """Put the placeholder where the weight's 4 bits are, in the memory of one number again."""
    old = getattr(module, name)
    new = placeholder(old.shape, dtype or old.dtype, getattr(module, f"{name}_packed").device)
    vars(new).update(vars(old), _is_hf_initialized=True)  # what DDP has noted on it, say
    setattr(module, name, new)


class _Holding(nn.Module):
    """A module that holds weights in NF4 or int8: moved or cast, its placeholders stay small and its scales exact."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        held = [name for name in self._parameters if is_held(self, name)]
        exact = {f"{name}_{part}" for name in held for part in ("scale", "offset", "error")} & self._buffers.keys()
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
    """A linear layer with its weight in NF4 (or int8, see Int8Linear); `weight` is a placeholder."""

    def forward(self, x: Tensor) -> Tensor:
        """Any leading shape, last dimension `in_features`."""
        y: Tensor = _LinearProduct.apply(x, self.bias, stored_weight(self, "weight"))
        return y


class Int8Linear(Nf4Linear):
    """The same with its weight in int8."""


class _LinearProduct(torch.autograd.Function):
    """x Wᵀ + b with a frozen W that is dequantized for each product and never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: QuantizedWeight) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x.to(weight.dtype), weight[0], bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        dx = (dy.to(ctx.weight.dtype) @ ctx.weight[0]).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dx, dbias, None
