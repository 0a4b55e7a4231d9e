"""Block-FP8: the same again when written twice, and of each matrix where experts are stored in one tensor."""

from __future__ import annotations

import io
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dsr1_tune.config import LoraRun
from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.merged import Kept, Merged, Plain
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.quant.fp8 import dequantize, to_blocks
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import lora
from tests.export.conftest import loaded, logits, merged, quantized
from tests.families import save_family


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


@pytest.mark.parametrize("family", ["gpt_oss", "inkling2_text"])
def test_fp8_of_experts_in_one_tensor_is_of_each_matrix_and_read_as_the_model_has_them(
    tiny_tokenizer: Any, tmp_path: Path, family: str
) -> None:
    base = save_family(tmp_path / "base", tiny_tokenizer, family)
    folder, said = quantized(base, tmp_path / "fp8", "fp8")
    assert f"{family} stores the experts of a layer in one tensor; they are written one by one" in " ".join(
        said.split()
    )
    before, after = loaded(base).state_dict(), loaded(folder).state_dict()
    stored = load_file(folder / "model.safetensors")
    place = "model.llm" if family == "inkling2_text" else "model"
    for expert, (part, matrix) in itertools.product(range(4), own_matrices(before, family).items()):
        name = f"{place}.layers.1.mlp.experts.{expert}.{part}.weight"
        weight, _ = to_blocks(matrix[expert])
        assert torch.equal(stored[name].view(torch.uint8), weight.view(torch.uint8)), name
        back = dequantize(stored[name], stored[f"{name}_scale_inv"], (128, 128))
        assert torch.equal(own_matrices(after, family)[part][expert], back), name
    if family == "gpt_oss":
        bias = before["model.layers.1.mlp.experts.gate_up_proj_bias"]
        assert torch.equal(stored["model.layers.1.mlp.experts.2.up_proj.bias"], bias[2, 1::2])
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) or name.endswith(("experts.gate_up_proj", "experts.down_proj")), name


def own_matrices(state: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """(experts, outputs, inputs) of the second layer, by the formulas of the families' own code."""
    gate_up, down = (state[f"model.layers.1.mlp.experts.{name}_proj"] for name in ("gate_up", "down"))
    if family == "gpt_oss":
        gate_up, down = gate_up.mT, down.mT
        return {"gate_proj": gate_up[:, ::2], "up_proj": gate_up[:, 1::2], "down_proj": down}
    gate, up = gate_up.chunk(2, dim=1)
    return {"gate_proj": gate, "up_proj": up, "down_proj": down}


def test_run_over_fp8_whose_experts_are_one_by_one_is_merged_and_quantized(
    tiny_tokenizer: Any, tmp_path: Path, sums: Path
) -> None:
    whole = save_family(tmp_path / "whole", tiny_tokenizer, "granitemoe")
    base, _ = quantized(whole, tmp_path / "base", "fp8", all=True)
    tree = {"data": {"files": [str(sums)]}, "base": {"model": str(base)}, "samples": 0, "out": str(tmp_path / "run")}
    tree |= {"schedule": {"max_steps": 3, "learning_rate": 0.02, "max_tokens": 128}}
    run = lora.run(LoraRun.model_validate(tree), console=Console(file=io.StringIO()))
    with pytest.raises(ModelError, match="granitemoe stores the experts of a layer in one tensor") as refused:
        merged(run.path, tmp_path / "kept", fp8="keep")
    assert "merge.fp8=keep" in refused.value.hint and not (tmp_path / "kept").exists()
    assert merged(run.path, tmp_path / "merged")["outputs"]["max_difference"] < 1e-4
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == load_file(whole / "model.safetensors").keys()
    again, _ = quantized(run.path, tmp_path / "again", "fp8")
    before, after, rounded = (logits(loaded(folder)) for folder in (base, tmp_path / "merged", again))
    assert (rounded - after).norm() < 0.5 * (after - before).norm()


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
