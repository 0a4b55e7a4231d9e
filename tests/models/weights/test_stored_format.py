"""The stored number format that a config.json declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PretrainedConfig

from dsr1_tune.models.weights.stored_format import StoredFormat, quant_method
from dsr1_tune.quant.w4a16 import quantization_config

W4A16 = quantization_config(64, ["lm_head"])
FORMATS: list[tuple[Any, StoredFormat]] = [
    (None, StoredFormat.PLAIN),
    ({}, StoredFormat.PLAIN),
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, StoredFormat.BLOCK_FP8),
    ({"quant_method": "fp8"}, StoredFormat.FP8),
    ({"quant_method": "dsr1_nf4"}, StoredFormat.NF4),
    ({"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}, StoredFormat.BNB_NF4),
    ({"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "fp4"}, StoredFormat.UNKNOWN),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, StoredFormat.BNB_INT8),
    (W4A16, StoredFormat.W4A16),
    ({**W4A16, "format": "int-quantized"}, StoredFormat.COMPRESSED),
    ({"quant_method": "gptq"}, StoredFormat.GPTQ),
    ({"quant_method": "auto-round"}, StoredFormat.UNKNOWN),
    (["of no known form"], StoredFormat.UNKNOWN),
]


@pytest.mark.parametrize(("stored_as", "wanted"), FORMATS)
def test_stored_format_is_the_same_of_config_json_and_of_transformers(stored_as: Any, wanted: StoredFormat) -> None:
    assert StoredFormat.of({"quantization_config": stored_as}) is wanted
    config = PretrainedConfig()
    if stored_as is not None:
        config.quantization_config = stored_as
    assert StoredFormat.of(config) is wanted


def test_stored_format_of_a_folder_sees_gguf_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "dsr1_nf4"}}))
    assert StoredFormat.in_folder(tmp_path) is StoredFormat.NF4
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert StoredFormat.in_folder(tmp_path) is StoredFormat.in_folder(tmp_path / "a.gguf") is StoredFormat.GGUF
    (tmp_path / "model.safetensors").touch()
    assert StoredFormat.in_folder(tmp_path) is StoredFormat.NF4


def test_stored_format_says_what_qlora_and_the_loader_can_do() -> None:
    assert [one.name for one in StoredFormat if one.is_4bit] == ["NF4", "BNB_NF4"]
    assert [one.name for one in StoredFormat if one.is_bitsandbytes] == ["BNB_NF4", "BNB_INT8"]
    assert quant_method({"quantization_config": {"quant_method": "gptq"}}) == "gptq"
    assert quant_method({"quantization_config": {}}) == quant_method({}) == "unknown"
