"""What was trained over a quantized base, merged into a 16-bit copy of that."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from dsr1_tune.config import LoraRun, Merge, QloraRun, Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export import dequantize, lineage, merge, quantize
from dsr1_tune.runs.folder import RunFolder
from tests import quantized_folders as packed
from tests.conftest import save_tiny

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}


def train(base: Path, data: Path, method: str) -> tuple[RunFolder, str]:
    """A short run over a base, and what it told."""
    kind, told = {"lora": LoraRun, "qlora": QloraRun}[method], io.StringIO()
    tree = {
        "data": {"files": [str(data)]},
        "base": {"model": str(base)},
        "schedule": {"max_steps": 3, "learning_rate": 0.01, "max_tokens": 128},
        "samples": 0,
        "out": str(base.parent / "run"),
    }
    console = Console(file=told, width=1000)
    return import_module(f"dsr1_tune.train.{method}").run(kind.model_validate(tree), console=console), told.getvalue()


@pytest.fixture(scope="module")
def over_gptq(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, sums: Path) -> tuple[RunFolder, str]:
    """A run of lora over a base in GPTQ, which lies beside it with a copy."""
    base = save_tiny(tmp_path_factory.mktemp("gptq") / "base", tiny_tokenizer, "qwen3_moe", num_hidden_layers=1)
    packed.requantize(base, packed.gptq, GPTQ, sym=False)
    dequantize.run(base, base.with_name("copy"))
    return train(base, sums, "lora")


def test_the_run_says_before_training_where_it_can_be_merged(over_gptq: tuple[RunFolder, str]) -> None:
    run, told = over_gptq
    base = run.path.with_name("base")
    says = f"dsr1-tune dequantize {base} --out {base}-bf16, then dsr1-tune merge RUN --base {base}-bf16"
    assert says in told and told.index(says) < told.index("Train")


def test_merge_into_the_copy_is_certified(over_gptq: tuple[RunFolder, str], tmp_path: Path) -> None:
    run, _ = over_gptq
    copy = run.path.with_name("copy")
    out = merge.run(run.path, tmp_path / "merged", Merge(base=str(copy)))
    before, after = (load_file(folder / "model.safetensors") for folder in (copy, out))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all(name.endswith("_proj.weight") for name in changed)
    stage = lineage.known(out).stage("merge")
    assert stage is not None and stage.facts["certificate"]["loss"]["merged"] > 0
    assert stage.facts["settings"]["base"] == str(copy)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_merge_without_a_copy_says_how_to_make_one(over_gptq: tuple[RunFolder, str], tmp_path: Path) -> None:
    run, _ = over_gptq
    base = run.path.with_name("base")
    with pytest.raises(ModelError, match=r"run: was trained over .*base, which is quantized \(gptq\)") as error:
        merge.run(run.path, tmp_path / "merged")
    assert f"dsr1-tune dequantize {base} --out {base}-bf16" in error.value.hint
    assert f"dsr1-tune merge {run.path} --base {base}-bf16" in error.value.hint


@pytest.mark.parametrize("how", ["another number", "another name"])
def test_merge_refuses_a_copy_of_another_base(how: str, over_gptq: tuple[RunFolder, str], tmp_path: Path) -> None:
    run, _ = over_gptq
    copy = dequantize.run(run.path.with_name("base"), tmp_path / "copy")
    tensors, name = load_file(copy / "model.safetensors"), "model.layers.0.mlp.experts.1.up_proj.weight"
    if how == "another number":
        tensors[name].view(-1)[77] += 1
    else:
        tensors["model.layers.9.extra"] = torch.ones(1)
    save_file(tensors, copy / "model.safetensors")
    said = f"{name} is another one" if how == "another number" else "only one of the two has model.layers.9.extra"
    with pytest.raises(ModelError, match=f"is no copy of .*: {said}"):
        merge.run(run.path, tmp_path / "merged", Merge(base=str(copy)))
    assert not (tmp_path / "merged").exists()


def test_merge_of_qlora_over_our_own_4_bits(tmp_path: Path, tiny_tokenizer: Any, sums: Path) -> None:
    original = save_tiny(tmp_path / "original", tiny_tokenizer, "qwen3_moe", num_hidden_layers=1)
    base = quantize.run(original, tmp_path / "base", Quantize(to="nf4", all=True))
    run, _ = train(base, sums, "qlora")
    copy = dequantize.run(base, tmp_path / "copy")
    out = merge.run(run.path, tmp_path / "merged", Merge(base=str(copy)))
    stage = lineage.known(out).stage("merge")
    assert stage is not None and stage.facts["certificate"]["tensors"]["num_changed"] > 0


def test_a_run_over_16_bits_needs_no_copy(over_gptq: tuple[RunFolder, str], tiny_run: Any, tmp_path: Path) -> None:
    copy = over_gptq[0].path.with_name("copy")
    with pytest.raises(ModelError, match="none of its weights is quantized"):
        merge.run(tiny_run("qwen3_moe").path, tmp_path / "merged", Merge(base=str(copy)))
