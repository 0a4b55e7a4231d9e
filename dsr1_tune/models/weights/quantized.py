"""Weights that others have quantized: which stored tensors one is made of, and the weight that they stand for.

Told by names, number formats and shapes of the tensors; `quantization_config` says only what those cannot. For a
weight `X.weight` of N × K these are read:

| format | tensors |
|---|---|
| GPTQ | `X.qweight` int32 (K · bits / 32, N), `X.qzeros`, `X.scales`, `X.g_idx` |
| AWQ ("gemm") | `X.qweight` int32 (K, N / 8), `X.qzeros`, `X.scales` |
| compressed-tensors, packed integers | `X.weight_packed` int32, `.weight_scale`, `.weight_shape`, `.weight_zero_point`, `.weight_g_idx` |
| compressed-tensors, NVFP4 and MXFP4 | `X.weight_packed` uint8, `.weight_scale`, `.weight_global_scale` |
| FP8 and int8, scaled by tensor, row, group or block | `X.weight`, `X.weight_scale` or `X.weight_scale_inv` or `X.scale`, `X.weight_zero_point` |
| ModelOpt's NVFP4 | `X.weight` uint8, `X.weight_scale`, `X.weight_scale_2` |
| gpt-oss' MXFP4 | `Y_blocks` uint8 (E, columns, K / 32, 16), `Y_scales` for the parameter Y of all experts |
"""  # noqa: E501 - a table

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec
from dsr1_tune.models.weights.index import COPY_AGAIN
from dsr1_tune.quant import scaled, words
from dsr1_tune.quant.fp8 import SCALE

NOT_READ = "give the model in 16 bits"
FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
# What engines scale activations and caches with: weights in 16 bits have no use for it.
_FOR_ACTIVATIONS = tuple(
    f".{owner}_{what}"
    for owner in ("input", "output", "input_global", "k", "v", "q", "activation")
    for what in ("scale", "zero_point")
)
_LEFT_OVER = (
    *(".qweight", ".qzeros", ".scales", ".g_idx", "_packed", "_blocks", "_scales", "_zero_point", ".pre_quant_scale"),
    *(".absmax", ".SCB", ".weight_shape", ".weight_g_idx"),
)
_LEFT_BESIDE = ("_scale", "_scale_inv", "_scale_2")  # of a weight; some layers have parameters with such names


@dataclass(frozen=True)
class Quantized:
    """One weight that is stored in fewer bits."""

    name: str
    """As it is called in 16 bits."""
    form: str
    """What it is stored in, for people."""
    parts: tuple[str, ...]
    """The stored tensors that make it up; the first is where it is to be written."""
    shape: tuple[int, ...]
    make: Callable[[torch.dtype], Tensor] = field(repr=False)
    """Reads the tensors and multiplies them out."""

    def read(self, dtype: torch.dtype) -> Tensor:
        """The weight in a number format. Raises ModelError, naming it, where that cannot hold it."""
        weight = self.make(dtype)
        if not bool(torch.isfinite(weight).all()):
            why = "; float16 may be too narrow for it, where bfloat16 is not" if dtype == torch.float16 else ""
            raise ModelError(f"{self.name}: comes out as numbers that are infinite or none", hint=COPY_AGAIN + why)
        return weight


def find(checkpoint: Checkpoint, told: Mapping[str, Any]) -> dict[str, Quantized]:
    """The quantized weights among stored tensors by their names in 16 bits; nothing is read yet but a few zeros.

    `told` is the `quantization_config`, or what stands in quantize_config.json in its place; {} where there is none.
    Raises ModelError, naming the tensor, for what is stored in a way that is not known here.
    """
    _refuse_unknown(told)
    found: dict[str, Quantized] = {}
    for name in checkpoint.names:
        one = _quantized(name, checkpoint, told)
        if one is not None:
            found[one.name] = one
    used = {part for one in found.values() for part in one.parts}
    for name in checkpoint.names:
        if name not in used and _is_left_over(name, checkpoint) and not is_for_activations(name):
            raise ModelError(f"{name}: belongs to no quantized weight of a kind that is read here", hint=NOT_READ)
        if name not in used and checkpoint.spec(name).dtype in FLOAT8:
            raise ModelError(f"{name}: is in float8, and nothing stored beside it says by what scale", hint=COPY_AGAIN)
    return found


def _is_left_over(name: str, checkpoint: Checkpoint) -> bool:
    beside = next((name.removesuffix(end) for end in _LEFT_BESIDE if name.endswith(end)), None)
    return name.endswith(_LEFT_OVER) or (beside is not None and beside in checkpoint)


def is_scaled_otherwise(checkpoint: Checkpoint) -> bool:
    """Whether float8 weights have no scales under DeepSeek-V3's names: those of DeepSeek-V4 are called otherwise."""
    return any(checkpoint.spec(name).dtype in FLOAT8 and name + SCALE not in checkpoint for name in checkpoint.names)


def is_for_activations(name: str) -> bool:
    """Whether a stored tensor scales activations or a cache of them."""
    return name.endswith(_FOR_ACTIVATIONS)


def _refuse_unknown(told: Mapping[str, Any]) -> None:
    """Raise ModelError for what tensors look like others that are read, and are not."""
    version = str(told.get("version", "gemm")).lower()
    if told.get("quant_method") == "awq" and version != "gemm":
        raise ModelError(f"its AWQ weights are packed for {version}; only gemm is read", hint=NOT_READ)
    forms = [told.get("format"), *(group.get("format") for group in _groups(told))]
    if odd := [form for form in forms if form and ("sparse" in form or "marlin" in form)]:
        raise ModelError(f"its weights are stored as {odd[0]}, which is not read here", hint=NOT_READ)
    if told.get("transform_config"):
        raise ModelError("its weights are rotated (transform_config), which is not undone here", hint=NOT_READ)


def _groups(told: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """compressed-tensors' groups of layers."""
    groups = told.get("config_groups")
    return [one for one in groups.values() if isinstance(one, dict)] if isinstance(groups, dict) else []


def _quantized(name: str, checkpoint: Checkpoint, told: Mapping[str, Any]) -> Quantized | None:
    """The weight whose first part a stored tensor is, if it is one."""
    stored = checkpoint.spec(name)
    if name.endswith(".qweight"):
        return _integers(name, checkpoint, told)
    if name.endswith("_packed"):
        made = _packed_integers if stored.dtype == "I32" else _packed_fp4
        return made(name, checkpoint)
    if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in checkpoint:
        return _gpt_oss(name, checkpoint)
    if stored.dtype in (*FLOAT8, "I8", "U8"):
        return _scaled(name, checkpoint, told)
    return None


# --- GPTQ and AWQ ----------------------------------------------------------------------------------------------------


def _integers(name: str, checkpoint: Checkpoint, told: Mapping[str, Any]) -> Quantized:
    owner = name.removesuffix("qweight")
    _must_have(name, checkpoint, f"{owner}qzeros", f"{owner}scales")
    stored, zeros = checkpoint.spec(name), checkpoint.spec(f"{owner}qzeros")
    groups, outputs = _of_dims(f"{owner}scales", checkpoint, 2)
    if stored.dtype != "I32" or zeros.dtype != "I32" or len(stored.shape) != 2 or len(zeros.shape) != 2:
        raise _odd(name, stored)
    if zeros.shape[0] != groups:
        raise _odd(f"{owner}qzeros", zeros)
    if stored.shape[1] == outputs:
        return _gptq(owner, checkpoint, told)
    if stored.shape[1] * 8 != outputs or zeros.shape[1] * 8 != outputs or stored.shape[0] % groups:
        raise _odd(name, stored)
    parts = tuple(f"{owner}{part}" for part in ("qweight", "qzeros", "scales"))
    return Quantized(
        f"{owner}weight",
        "AWQ",
        parts,
        (outputs, stored.shape[0]),
        lambda dtype: words.awq(*(checkpoint.read(part) for part in parts)).to(dtype),
    )


def _gptq(owner: str, checkpoint: Checkpoint, told: Mapping[str, Any]) -> Quantized:
    (rows, outputs), zeros = checkpoint.spec(f"{owner}qweight").shape, checkpoint.spec(f"{owner}qzeros")
    groups = zeros.shape[0]
    order = f"{owner}g_idx"
    has_order = order in checkpoint and checkpoint.spec(order).num_elements > 0
    bits = round(zeros.shape[1] * words.WORD / outputs)
    if bits not in (2, 3, 4, 8) or zeros.shape[1] != math.ceil(outputs * bits / words.WORD):
        raise _odd(f"{owner}qzeros", zeros)
    inputs = checkpoint.spec(order).num_elements if has_order else rows * words.WORD // bits
    if rows != math.ceil(inputs * bits / words.WORD):
        raise _odd(f"{owner}qweight", checkpoint.spec(f"{owner}qweight"))
    size = told.get("group_size", -1)
    size = size if isinstance(size, int) and size > 0 and math.ceil(inputs / size) == groups else inputs // groups
    if not has_order and math.ceil(inputs / size) != groups:
        raise _odd(f"{owner}scales", checkpoint.spec(f"{owner}scales"))

    def make(dtype: torch.dtype) -> Tensor:
        q_KN = words.unpack(checkpoint.read(f"{owner}qweight").T, bits)[:, :inputs].T
        stored = words.unpack(checkpoint.read(f"{owner}qzeros"), bits)[:, :outputs]
        zeros = words.gptq_zeros(stored, _is_one_less(f"{owner}qzeros", stored, bits, told))
        group_of = _groups_in(order, checkpoint, groups) if has_order else torch.arange(inputs) // size
        return words.gptq(q_KN, zeros, checkpoint.read(f"{owner}scales"), group_of).to(dtype)

    parts = tuple(part for one in ("qweight", "qzeros", "scales", "g_idx") if (part := f"{owner}{one}") in checkpoint)
    return Quantized(f"{owner}weight", "GPTQ", parts, (outputs, inputs), make)


def _is_one_less(name: str, stored: Tensor, bits: int, told: Mapping[str, Any]) -> bool:
    """Whether zeros are stored as GPTQ's first format does it, one less than they are.

    Symmetric ones tell it themselves, as all are the middle; others only by `checkpoint_format`.
    """
    middle, first = 1 << bits - 1, stored.flatten()[0]
    is_constant = bool((stored == first).all())
    if is_constant and int(first) in (middle - 1, middle) and told.get("sym", True):
        return int(first) == middle - 1
    if told.get("sym"):
        raise ModelError(f"{name}: is symmetric by its config, but its zeros are not the middle", hint=COPY_AGAIN)
    if not told:
        raise ModelError(
            f"{name}: nothing says whether its zeros are those of GPTQ's first format",
            hint='put the quantize_config.json that it was made with into the folder, or write {"sym": false, '
            '"checkpoint_format": "gptq"} into it ("gptq_v2" if it was made by a GPTQModel that said so)',
        )
    return told.get("checkpoint_format", "gptq") != "gptq_v2"


def _groups_in(name: str, checkpoint: Checkpoint, num_groups: int) -> Tensor:
    """The group of each column. Raises ModelError for one that is not there."""
    group_of = checkpoint.read(name).long().flatten()
    if bool((group_of < 0).any()) or bool((group_of >= num_groups).any()):
        raise ModelError(f"{name}: names a group that has no scale; there are {num_groups}", hint=COPY_AGAIN)
    return group_of


# --- compressed-tensors' packed weights ------------------------------------------------------------------------------


def _packed_integers(name: str, checkpoint: Checkpoint) -> Quantized:
    weight = name.removesuffix("_packed")
    _must_have(name, checkpoint, f"{weight}_scale", f"{weight}_shape")
    rows, num_words = _of_dims(name, checkpoint, 2)
    named = checkpoint.read(f"{weight}_shape").flatten().tolist()
    scale = checkpoint.spec(f"{weight}_scale")
    cols = int(named[-1])
    bits = next((bits for bits in (2, 4, 8) if math.ceil(cols * bits / words.WORD) == num_words), 0)
    groups = scale.num_elements // rows
    # 4 or 8 bits only: others were packed in another way by earlier releases.
    if not bits or len(named) != 2 or named[0] != rows or groups * rows != scale.num_elements or cols % groups:
        raise _odd(name, checkpoint.spec(name), f" with {weight}_shape {named} and {weight}_scale {scale.shape}")
    zero, order = f"{weight}_zero_point", f"{weight}_g_idx"

    def make(dtype: torch.dtype) -> Tensor:
        q_NK = words.unpack(checkpoint.read(name), bits)[:, :cols]
        zeros = None
        if zero in checkpoint:  # packed along the rows
            zeros = words.unpack(checkpoint.read(zero).T, bits)[:, :rows].T
        group_of = torch.arange(cols) // (cols // groups)
        if order in checkpoint:
            group_of = _groups_in(order, checkpoint, groups)
        scales = checkpoint.read(f"{weight}_scale").view(rows, groups)
        return words.compressed(q_NK, bits, scales, zeros, group_of).to(dtype)

    if zero in checkpoint and checkpoint.spec(zero).shape != (math.ceil(rows * bits / words.WORD), groups):
        raise _odd(zero, checkpoint.spec(zero))
    parts = (name, f"{weight}_scale", f"{weight}_shape", *(part for part in (zero, order) if part in checkpoint))
    return Quantized(weight, f"integers of {bits} bits", parts, (rows, cols), make)


def _packed_fp4(name: str, checkpoint: Checkpoint) -> Quantized:
    weight = name.removesuffix("_packed")
    _must_have(name, checkpoint, f"{weight}_scale")
    parts = (name, f"{weight}_scale")
    overall = f"{weight}_global_scale"
    # That one divides: it was multiplied on before the scales were rounded.
    return _fp4(weight, (*parts, overall) if overall in checkpoint else parts, checkpoint, Tensor.div_)


# --- a number for each weight, and scales ----------------------------------------------------------------------------


def _scaled(name: str, checkpoint: Checkpoint, told: Mapping[str, Any]) -> Quantized | None:
    """FP8, int8, and FP4 in bytes; None for bytes without scales, which are something else."""
    named = [name + scale for scale in _SCALES] + [f"{name.removesuffix('weight')}scale"]
    scale = next((one for one in named if one in checkpoint), None)
    if scale is None:
        return None
    spec, of_scales = checkpoint.spec(name), checkpoint.spec(scale)
    overall, zero = f"{name}_scale_2", f"{name}_zero_point"
    is_fp4 = spec.dtype == "U8" or (spec.dtype == "I8" and of_scales.dtype in ("U8", "F8_E8M0"))
    if is_fp4:
        parts = (name, scale, overall) if overall in checkpoint else (name, scale)
        return _fp4(name, parts, checkpoint, Tensor.mul_)
    block = scaled.block_of(spec.shape, of_scales.shape, _block_size(told)) if len(spec.shape) >= 2 else None
    if block is None:
        raise _odd(scale, of_scales, f" for a weight of {spec.shape}")
    has_zero = zero in checkpoint
    if has_zero and checkpoint.spec(zero).shape != of_scales.shape:
        raise _odd(zero, checkpoint.spec(zero))

    def make(dtype: torch.dtype) -> Tensor:
        numbers = scaled.as_numbers(checkpoint.read(scale))
        zeros = checkpoint.read(zero).float() if has_zero else None
        return scaled.scaled(checkpoint.read(name).float(), numbers, block, zeros).to(dtype)

    form = "int8" if spec.dtype == "I8" else "FP8"
    return Quantized(name, form, (name, scale, zero) if has_zero else (name, scale), spec.shape, make)


def _block_size(told: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, where the config says so: under a name of its own, or compressed-tensors'."""
    weights = [group.get("weights") for group in _groups(told)]
    named = [told.get("weight_block_size"), *(one.get("block_structure") for one in weights if isinstance(one, dict))]
    size = next((one for one in named if isinstance(one, (list, tuple)) and len(one) == 2), None)
    return (int(size[0]), int(size[1])) if size else None


def _fp4(
    weight: str, parts: tuple[str, ...], checkpoint: Checkpoint, apply: Callable[[Tensor, Tensor], Any]
) -> Quantized:
    """FP4 in bytes, with scales for 16 or 32 weights in a row, and one to `apply` to all of those."""
    packed, scale = checkpoint.spec(parts[0]), checkpoint.spec(parts[1])
    shape = (*packed.shape[:-1], packed.shape[-1] * 2)
    is_row = scale.shape[:-1] == shape[:-1] and bool(scale.shape) and shape[-1] in (
        16 * scale.shape[-1], 32 * scale.shape[-1]
    )  # fmt: skip
    if packed.dtype not in ("U8", "I8") or len(shape) != 2 or not is_row:
        raise _odd(parts[0], packed, f" with {parts[1]} {scale.shape}")
    if len(parts) > 2 and checkpoint.spec(parts[2]).num_elements != 1:
        raise _odd(parts[2], checkpoint.spec(parts[2]))
    if scale.dtype == "F8_E4M3" and len(parts) < 3:
        raise ModelError(f"{parts[1]}: the scale over all of its scales is missing", hint=COPY_AGAIN)

    def make(dtype: torch.dtype) -> Tensor:
        numbers = scaled.as_numbers(checkpoint.read(parts[1]))
        for overall in parts[2:]:
            apply(numbers, checkpoint.read(overall).float().reshape(()))
        block = (1, shape[-1] // scale.shape[-1])
        return scaled.scaled(scaled.unpack_fp4(checkpoint.read(parts[0])), numbers, block).to(dtype)

    return Quantized(weight, "NVFP4" if len(parts) > 2 else "MXFP4", parts, shape, make)


def _gpt_oss(name: str, checkpoint: Checkpoint) -> Quantized:
    """All experts of a layer, whose matrices the model has the other way round."""
    parameter = name.removesuffix("_blocks")
    parts = (name, f"{parameter}_scales")
    blocks, scales = (checkpoint.spec(part) for part in parts)
    if len(blocks.shape) != 4 or blocks.shape[:-1] != scales.shape or {blocks.dtype, scales.dtype} != {"U8"}:
        raise _odd(name, blocks, f" with {parts[1]} {scales.shape}")
    experts, outputs, groups, half = blocks.shape
    shape = (experts, groups * half * 2, outputs)

    def make(dtype: torch.dtype) -> Tensor:
        packed, powers = (checkpoint.read(part) for part in parts)
        weight = torch.empty(shape, dtype=dtype)  # in float32 all at once would be twice what it takes
        for expert in range(experts):
            weight[expert] = scaled.mxfp4(packed[expert], powers[expert]).T
        return weight

    return Quantized(parameter, "MXFP4", parts, shape, make)


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _must_have(name: str, checkpoint: Checkpoint, *others: str) -> None:
    if absent := [one for one in others if one not in checkpoint]:
        raise ModelError(f"{name}: {absent[0]}, which belongs to it, is missing", hint=COPY_AGAIN)


def _of_dims(name: str, checkpoint: Checkpoint, number: int) -> tuple[int, ...]:
    spec = checkpoint.spec(name)
    if len(spec.shape) != number:
        raise _odd(name, spec)
    return spec.shape


def _odd(name: str, spec: Spec, more: str = "") -> ModelError:
    return ModelError(
        f"{name}: is {spec.dtype} {spec.shape}{more}, which is stored in no way that is known here", hint=NOT_READ
    )


def forms(quantized: Iterable[Quantized]) -> str:
    """What weights are stored in, for people, the most frequent first."""
    names = [one.form for one in quantized]
    return ", ".join(sorted(set(names), key=lambda form: -names.count(form)))
