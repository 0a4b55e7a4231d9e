"""In which number format a folder stores its weights."""

from __future__ import annotations

from typing import Any

NF4 = "dsr1_nf4"
"""The `quant_method` of what is stored in our 4 bits."""
NF4_BYTES = 4.13 / 8
"""Bytes a weight in 4 bits takes, its scales included."""


def is_nf4(quantization: Any) -> bool:
    """Whether a config's `quantization_config` says that the weights are stored in our 4 bits."""
    return isinstance(quantization, dict) and quantization.get("quant_method") == NF4


def prequantized_kind(quantization: Any) -> str | None:
    """ "nf4" or "int8" where the weights are stored in bitsandbytes' layout of it, and are held as they are."""
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "bitsandbytes":
        return None
    if quantization.get("load_in_8bit"):
        return "int8"
    return "nf4" if quantization.get("bnb_4bit_quant_type") == "nf4" else None
