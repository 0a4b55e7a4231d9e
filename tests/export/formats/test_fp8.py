"""Block-FP8: the same again when written twice, and refused for fused experts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.merged import Kept, Merged, Plain
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import loaded, logits, merged, quantized


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


@pytest.mark.parametrize("is_merged", [False, True])
def test_fp8_of_a_run_over_fp8_keeps_what_was_learned(
    run_on: Callable[..., RunFolder], tmp_path: Path, is_merged: bool
) -> None:
    """Its numbers are those of float8 and a little: rounded to the nearest, they are the base's again."""
    run = run_on(in_fp8_blocks, rate=5e-4)
    if is_merged:
        merged(run.path, tmp_path / "merged")
    folder, _ = quantized(tmp_path / "merged" if is_merged else run.path, tmp_path / "fp8", "fp8", all=True)
    source, written = open_source(run.path), Plain(Checkpoint(folder), (128, 128))
    assert isinstance(source.weights, Merged)
    kept = sum(
        (
            Kept.of(written.exact(name), source.weights.exact(name), source.weights.base.exact(name))
            for name in source.weights.updates.by_name
        ),
        Kept(),
    )
    assert kept.share == pytest.approx(1, abs=0.1)


def in_fp8_blocks(base: Path) -> None:
    whole, _ = quantized(base, base.with_name("whole"), "fp8", all=True)
    shutil.rmtree(base)
    whole.rename(base)


def test_fp8_refuses_experts_in_one_tensor(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gpt_oss stores the matrices of its experts in one tensor"):
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
