"""compressed-tensors' "pack-quantized" format with 4-bit integers: what vLLM and SGLang call W4A16.

`X.weight` is stored as `X.weight_packed` (int32, eight weights each, the first in the lowest four bits),
`X.weight_scale` (one for each group of weights along a row) and `X.weight_shape`.

Letters: N rows, the outputs; K columns, the inputs; G groups of a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

PACKED, SCALE, SHAPE = "_packed", "_scale", "_shape"
"""What is put behind a weight's name."""
LOWEST, HIGHEST = -8, 7
PER_WORD = 8


def is_w4a16(quantization: Any) -> bool:
    """Whether a config's `quantization_config` is this: symmetric 4-bit integers in groups, nothing else."""
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "compressed-tensors":
        return False
    groups = quantization.get("config_groups")
    if quantization.get("format") != "pack-quantized" or not isinstance(groups, dict):
        return False
    wanted = {"num_bits": 4, "type": "int", "strategy": "group", "symmetric": True}
    return all(
        isinstance(group, dict)
        and not group.get("input_activations")
        and isinstance(weights := group.get("weights"), dict)
        and all(weights.get(key) == value for key, value in wanted.items())
        and weights.get("actorder") != "group"  # its groups are not neighbours
        for group in groups.values()
    )


def quantization_config(group_size: int, ignore: Iterable[str]) -> dict[str, Any]:
    """What config.json says of it; `ignore` names every linear layer that is not quantized."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
        "actorder": None,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": "pack-quantized"}},
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def per_number(name: str) -> int:
    """How many weights a number of the stored tensor `name` holds."""
    return PER_WORD if name.endswith(f".weight{PACKED}") else 1


def pack(q_NK: Tensor) -> Tensor:
    """Integers from -8 to 7 (N, K) → int32 (N, K / 8)."""
    nibbles = (q_NK - LOWEST).to(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous().view(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """int32 (N, K / 8) → int8 (N, K)."""
    num_rows, num_words = packed.shape
    pairs = packed.contiguous().view(torch.uint8)
    nibbles = torch.stack((pairs & 0xF, pairs >> 4), dim=-1)
    return nibbles.view(torch.int8).reshape(num_rows, num_words * PER_WORD).add_(LOWEST)


def dequantize(q_NK: Tensor, scale_NG: Tensor) -> Tensor:
    """Each integer times its group's scale, in the scale's number format, as the engines do."""
    groups = q_NK.view(*scale_NG.shape, -1).to(scale_NG.dtype)
    return groups.mul_(scale_NG.unsqueeze(-1)).view(q_NK.shape)
