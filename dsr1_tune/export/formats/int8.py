"""Int8 by rows (LLM.int8, arXiv 2208.07339) in bitsandbytes' layout, experts included: for our loader, for inference.

As our loader computes with them the weights alone are rounded; activations stay in the model's own number format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsr1_tune.config.export import Quantize
from dsr1_tune.export.formats import bitsandbytes
from dsr1_tune.export.weights.accounting import Quantized
from dsr1_tune.export.weights.source import Source
from dsr1_tune.runs.console import Narrator

_CONFIG: dict[str, Any] = {
    "load_in_4bit": False,
    "load_in_8bit": True,
    "llm_int8_threshold": 0.0,
    "llm_int8_has_fp16_weight": False,
}


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the source's weights, config and tokenizer to `folder`, its matrices in int8 with a scale for each row."""
    return bitsandbytes.write(
        source, folder, settings, narrator, kind="int8", config=_CONFIG, fits=lambda rows, cols: True
    )
