"""NF4 (arXiv 2305.14314) in bitsandbytes' layout, experts included: for our loader, which holds it as it is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsr1_tune.config.export import Quantize
from dsr1_tune.export.formats import bitsandbytes
from dsr1_tune.export.weights.accounting import Quantized
from dsr1_tune.export.weights.source import Source
from dsr1_tune.quant.nf4 import fits
from dsr1_tune.runs.console import Narrator

_CONFIG: dict[str, Any] = {
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_compute_dtype": "bfloat16",
}


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the source's weights, config and tokenizer to `folder`, its matrices in NF4 with doubly quantized scales.

    Raises ModelError for experts that do not divide into blocks of 64 weights.
    """
    return bitsandbytes.write(source, folder, settings, narrator, kind="nf4", config=_CONFIG, fits=fits)
