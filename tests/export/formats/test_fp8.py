"""Block-FP8: the same again when written twice, and refused for fused experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from tests.export.conftest import loaded, logits, quantized


def test_fp8_of_fp8_is_the_same_again(tiny_model: Any, tmp_path: Path) -> None:
    once, _ = quantized(tiny_model("deepseek_v3", hidden_size=192), tmp_path / "once", "fp8", all=True)
    twice, _ = quantized(once, tmp_path / "twice", "fp8", all=True)
    want, got = load_file(once / "model.safetensors"), load_file(twice / "model.safetensors")
    assert want.keys() == got.keys() and sum(name.endswith("_scale_inv") for name in want) == 26
    for name, tensor in want.items():
        if tensor.dtype == torch.float8_e4m3fn:
            assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8)), name
        else:
            assert torch.allclose(got[name], tensor, rtol=1e-6, atol=0), name


def test_fp8_refuses_experts_in_one_tensor(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="several experts"):
        quantized(tiny_model("gpt_oss"), tmp_path / "out", "fp8")
    assert not list(tmp_path.glob("*out*"))


def test_fp8_is_read_by_transformers_alone_and_bitsandbytes_refused(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("mixtral")
    folder, _ = quantized(source, tmp_path / "fp8", "fp8")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.allclose(logits(plain), logits(loaded(folder)), atol=1e-5)
    for family in ("mixtral", "gpt_oss"):
        folder, _ = quantized(tiny_model(family), tmp_path / f"{family}-nf4", "nf4")
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    folder, _ = quantized(source, tmp_path / "int8", "int8")
    with pytest.raises(RuntimeError):
        logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
