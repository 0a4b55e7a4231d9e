"""Folders in formats that others quantize to, packed number by number as their definitions say, by nothing of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Parts = dict[str, Tensor]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def words(numbers: np.ndarray, bits: int) -> Tensor:
    """(rows, n) → int32 (rows, n · bits / 32): the numbers' bits one after the other, the first in the lowest."""
    rows = []
    for row in numbers.tolist():
        stream = sum(int(number) << bits * place for place, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(stream.to_bytes(4 * count, "little"), dtype="<i4"))
    return torch.from_numpy(np.stack(rows).astype(np.int32))


def nibbles(codes: np.ndarray) -> Tensor:
    """(..., n) codes of 4 bits → uint8 (..., n / 2), the first of two in the lower half."""
    return torch.from_numpy((codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8))


def _draw(rng: np.random.Generator, *shape: int, bits: int) -> np.ndarray:
    return rng.integers(0, 1 << bits, shape)


def _scales(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.uniform(0.01, 0.03, shape).astype(np.float16))


def gptq(
    rng: np.random.Generator, n: int, k: int, bits: int = 4, sym: bool = True, v2: bool = False, shuffled: bool = False
) -> tuple[Parts, Tensor]:
    """Groups of 32 along the inputs; with `shuffled` in the order of activations (g_idx)."""
    groups, middle = k // 32, 1 << bits - 1
    q = _draw(rng, n, k, bits=bits)
    zeros = np.full((groups, n), middle) if sym else _draw(rng, groups, n, bits=bits) + (not v2)
    scales = _scales(rng, groups, n)
    group_of = np.arange(k) // 32
    if shuffled:
        rng.shuffle(group_of)
    expected = torch.tensor((q - zeros[group_of].T).astype(np.float32)) * scales.float().T[:, group_of]
    stored_zeros = zeros if v2 else zeros - 1
    packed = words(q, bits).T.contiguous()  # along the inputs, which are rows there
    parts = {"qweight": packed, "qzeros": words(stored_zeros, bits), "scales": scales}
    return parts | {"g_idx": torch.tensor(group_of, dtype=torch.int32)}, expected


def awq(rng: np.random.Generator, n: int, k: int) -> tuple[Parts, Tensor]:
    """The kernel's order: of eight neighbours the 0th, 2nd, 4th, 6th, then the odd ones."""
    groups = k // 32
    q, zeros, scales = _draw(rng, k, n, bits=4), _draw(rng, groups, n, bits=4), _scales(rng, groups, n)
    expected = torch.tensor((q - zeros.repeat(32, axis=0)).T.astype(np.float32)) * scales.float().T.repeat_interleave(
        32, 1
    )

    def in_order(numbers: np.ndarray) -> np.ndarray:
        eights = numbers.reshape(len(numbers), -1, 8)
        return eights[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(len(numbers), -1)

    return {"qweight": words(in_order(q), 4), "qzeros": words(in_order(zeros), 4), "scales": scales}, expected


def packed_integers(
    rng: np.random.Generator, n: int, k: int, bits: int = 4, sym: bool = True, group: int = 32, shuffled: bool = False
) -> tuple[Parts, Tensor]:
    """compressed-tensors: signed numbers with half their range added; zeros packed along the outputs."""
    groups, half = k // group, 1 << bits - 1
    q = _draw(rng, n, k, bits=bits) - half
    zeros = np.zeros((n, groups), int) if sym else _draw(rng, n, groups, bits=bits) - half
    scales = _scales(rng, n, groups).bfloat16()
    group_of = np.arange(k) // group
    if shuffled:
        rng.shuffle(group_of)
    expected = torch.tensor((q - zeros[:, group_of]).astype(np.float32)) * scales.float()[:, group_of]
    parts = {"weight_packed": words(q + half, bits), "weight_scale": scales, "weight_shape": torch.tensor([n, k])}
    if not sym:
        parts["weight_zero_point"] = words((zeros + half).T, bits).T.contiguous()
    if shuffled:
        parts["weight_g_idx"] = torch.tensor(group_of, dtype=torch.int32)
    return parts, expected


def fp8(
    rng: np.random.Generator, n: int, k: int, scale: str = "tensor", name: str = "weight_scale"
) -> tuple[Parts, Tensor]:
    """Float8 and a scale for all, for a row, for a group of 32, or for 48 × 48 of which the last overhang."""
    stored = torch.from_numpy(rng.normal(0, 60, (n, k)).astype(np.float32)).to(torch.float8_e4m3fn)
    shape = {"tensor": (), "row": (n, 1), "group": (n, k // 32), "block": (-(-n // 48), -(-k // 48))}[scale]
    scales = torch.from_numpy(np.asarray(rng.uniform(0.001, 0.003, shape), dtype=np.float32))
    high, wide = {"tensor": (n, k), "row": (1, k), "group": (1, 32), "block": (48, 48)}[scale]
    grid = scales.reshape(1, 1) if scale == "tensor" else scales
    expected = stored.float() * grid[torch.arange(n) // high][:, torch.arange(k) // wide]
    return {"weight": stored, name: scales}, expected


def int8(rng: np.random.Generator, n: int, k: int, sym: bool = True) -> tuple[Parts, Tensor]:
    """compressed-tensors' "int-quantized", a scale for each row, and perhaps a zero."""
    q, scales = rng.integers(-128, 128, (n, k)), _scales(rng, n, 1)
    zeros = np.zeros((n, 1), int) if sym else rng.integers(-20, 20, (n, 1))
    expected = torch.tensor((q - zeros).astype(np.float32)) * scales.float()
    parts = {"weight": torch.tensor(q.astype(np.int8)), "weight_scale": scales}
    return parts if sym else parts | {"weight_zero_point": torch.tensor(zeros.astype(np.int8))}, expected


def nvfp4(rng: np.random.Generator, n: int, k: int, modelopt: bool = False) -> tuple[Parts, Tensor]:
    """FP4, a float8 scale for 16 of them; one over those, which divides, or as ModelOpt has it multiplies."""
    codes = _draw(rng, n, k, bits=4)
    scales = torch.from_numpy(rng.uniform(20, 400, (n, k // 16)).astype(np.float32)).to(torch.float8_e4m3fn)
    overall = torch.tensor([2.0**-13 if modelopt else 2.0**13])
    factor = overall if modelopt else 1 / overall
    numbers = torch.tensor([[E2M1[code] for code in row] for row in codes.tolist()])
    expected = numbers * (scales.float() * factor).repeat_interleave(16, 1)
    if modelopt:
        return {"weight": nibbles(codes), "weight_scale": scales, "weight_scale_2": overall.reshape(())}, expected
    return {"weight_packed": nibbles(codes), "weight_scale": scales, "weight_global_scale": overall}, expected


def mxfp4(rng: np.random.Generator, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., k) → packed (..., k / 32, 16), powers (..., k / 32) with 127 added, and what they stand for (..., k)."""
    codes, powers = _draw(rng, *shape, bits=4), rng.integers(118, 124, (*shape[:-1], shape[-1] // 32))
    numbers = np.array(E2M1, np.float32)[codes] * np.exp2(powers.astype(np.float32) - 127).repeat(32, axis=-1)
    packed = nibbles(codes).unflatten(-1, (-1, 16))
    return packed, torch.tensor(powers.astype(np.uint8)), torch.from_numpy(numbers)


Make = Callable[..., tuple[Parts, Tensor]]


def requantize(folder: Path, make: Make, told: dict[str, Any] | None, **how: Any) -> dict[str, Tensor]:
    """Put other weights, quantized by `make`, in the places of a saved model's projections; what they stand for.

    `told` becomes config.json's quantization_config.
    """
    rng, file = np.random.default_rng(0), folder / "model.safetensors"
    tensors, expected = load_file(file), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, expected[name] = make(rng, *tensors.pop(name).shape, **how)
        tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    _save(folder, tensors, told)
    return expected


def as_published_gpt_oss(folder: Path) -> dict[str, Tensor]:
    """A saved gpt-oss in the layout that it is published in: MXFP4, experts' outputs before their inputs."""
    rng, file = np.random.default_rng(0), folder / "model.safetensors"
    tensors, expected = load_file(file), {}
    for name in [name for name in tensors if name.endswith((".gate_up_proj", ".down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks, scales, numbers = mxfp4(rng, experts, outputs, inputs)
        expected[name] = numbers.transpose(1, 2)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    _save(folder, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    return expected


def as_published_deepseek_v4(folder: Path) -> dict[str, Tensor]:
    """A saved DeepSeek-V4 in the layout that it is published in: float8 in blocks, experts in FP4, `.scale` beside."""
    rng, file = np.random.default_rng(0), folder / "model.safetensors"
    tensors, expected = load_file(file), {}
    for name in [name for name in tensors if re.search(r"\.(w[qkv]\w*|wo_b|w[123])\.weight$", name)]:
        shape = tensors.pop(name).shape
        if ".experts." in name:
            blocks, powers, expected[name] = mxfp4(rng, *shape)
            parts = {"weight": blocks.flatten(1).view(torch.int8), "scale": powers.view(torch.float8_e8m0fnu)}
        else:
            parts, expected[name] = fp8(rng, *shape, scale="block", name="scale")
        tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
    told = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [48, 48]}
    _save(folder, tensors, told | {"activation_scheme": "dynamic"})
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"expert_dtype": "fp4"}))
    return expected


def _save(folder: Path, tensors: Parts, told: dict[str, Any] | None) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    if told is not None:
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(tree | {"quantization_config": told}))
