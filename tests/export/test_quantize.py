"""`quantize`: nf4, int8 and fp8 of every family, read back by their own libraries and held by our loader as stored."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ConfigError, ModelError, RunError, TuneError
from dsr1_tune.export import lineage, quantize
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.quant.nf4 import is_held
from tests.export.conftest import WORST, loaded, logits, multiplied_out, quantized

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral"]
FORMATS = ["nf4", "int8", "fp8"]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_experts_come_back_as_their_library_reads_them(
    tiny_model: Any, tmp_path: Path, family: str, to: str
) -> None:
    source = tiny_model(family)
    folder, said = quantized(source, tmp_path / "out", to)
    plain, done = multiplied_out(folder, source, tmp_path / "plain")
    assert all(re.search(r"experts\.\d+\.\w+\.weight$", name) for name in done)
    assert len(done) == {"mixtral": 24, "qwen3_moe": 24}.get(family, 12)
    model = loaded(folder)
    assert torch.allclose(logits(model), logits(loaded(plain)), atol=1e-5)
    if to != "fp8":
        assert all(is_held(block.module, name) for block in find_experts(model) for name in block.parameters)
    stage = lineage.read(folder).stage("quantize")  # type: ignore[union-attr]
    assert stage is not None and stage.facts["to"] == to
    (group,) = [group for group in stage.facts["groups"] if group["num_quantized"]]
    assert group["part"] == "routed_experts" and group["num_quantized"] == group["num_tensors"] == len(done)
    assert 0 < group["relative_error"] <= group["worst_error"] < WORST[to]
    exact = load_file(source / "model.safetensors")
    rounded = load_file(plain / "model.safetensors")
    error = sum(float((rounded[name] - exact[name]).square().sum()) for name in done) ** 0.5
    size = sum(float(exact[name].square().sum()) for name in done) ** 0.5
    assert group["relative_error"] == pytest.approx(error / size, rel=1e-3)
    assert "routed experts" in said and "100%" in said


@pytest.mark.parametrize("to", FORMATS)
def test_quantize_all_takes_every_layer_but_never_the_router(tiny_model: Any, tmp_path: Path, to: str) -> None:
    source = tiny_model("deepseek_v3")
    folder, _ = quantized(source, tmp_path / "out", to, all=True)
    plain, done = multiplied_out(folder, source, tmp_path / "plain")
    kept = {name for name in load_file(source / "model.safetensors") if name not in done}
    assert not any(word in name for name in done for word in ("mlp.gate.", "embed", "norm", "lm_head", "bias"))
    assert not any("_proj" in name and name.endswith("weight") for name in kept)
    assert torch.allclose(logits(loaded(folder)), logits(loaded(plain)), atol=1e-5)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    skipped = config["modules_to_not_convert" if to == "fp8" else "llm_int8_skip_modules"]
    assert {"lm_head", "model.layers.1.mlp.gate"} <= set(skipped)
    assert not any(f"{name}.weight" in done for name in skipped)


@pytest.mark.parametrize("to", FORMATS)
def test_quantize_keeps_what_transformers_would_drop(tiny_model: Any, tmp_path: Path, to: str) -> None:
    """The layers of DeepSeek-V3 that predict further tokens, and what engines read in its config, come along."""
    source = tiny_model("deepseek_v3")
    file, config = source / "model.safetensors", json.loads((source / "config.json").read_text())
    further = {"model.layers.2.eh_proj.weight", "model.layers.2.mlp.experts.0.up_proj.weight"}
    save_file(load_file(file) | {name: torch.randn(64, 64) for name in further}, file, {"format": "pt"})
    words = {"num_nextn_predict_layers": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    (source / "config.json").write_text(json.dumps(config | words))
    folder, _ = quantized(source, tmp_path / "out", to)
    stored, exact = load_file(folder / "model.safetensors"), load_file(file)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    for name in (*further, bias, "model.layers.1.mlp.gate.weight", "model.norm.weight"):
        assert stored[name].dtype == exact[name].dtype and torch.equal(stored[name], exact[name])
    written = json.loads((folder / "config.json").read_text())
    stored_as = written.pop("quantization_config")
    assert written == config | words
    skipped = stored_as["modules_to_not_convert" if to == "fp8" else "llm_int8_skip_modules"]
    assert {name.removesuffix(".weight") for name in further} <= set(skipped)


def test_quantize_keeps_shards_and_sidecars(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("deepseek_v3")
    whole, _ = quantized(source, tmp_path / "whole", "nf4")
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for file in [*source.glob("*token*"), source / "chat_template.jinja"]:
        shutil.copy(file, tmp_path / "sharded")
    (tmp_path / "sharded" / "LICENSE").write_text("all yours")
    folder, _ = quantized(tmp_path / "sharded", tmp_path / "out", "nf4")
    assert len(list(folder.glob("model-*.safetensors"))) == len(list((tmp_path / "sharded").glob("model-*"))) > 3
    assert (folder / "LICENSE").read_text() == "all yours"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "sharded" / name).read_bytes()
    assert torch.equal(logits(loaded(folder)), logits(loaded(whole)))
    # safetensors' own reader finds every tensor aligned
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                stored.get_tensor(name)


def test_quantize_merges_a_run_while_it_reads(tiny_run: Any, tmp_path: Path) -> None:
    from dsr1_tune.config.export import Merge
    from dsr1_tune.export import merge

    run = tiny_run("qwen3_moe", "lora")
    merged = merge.run(run.path, tmp_path / "merged", Merge(rows=1), Console(file=io.StringIO()))
    straight, _ = quantized(run.path, tmp_path / "straight", "int8")
    over, _ = quantized(merged, tmp_path / "over", "int8")
    one, other = load_file(straight / "model.safetensors"), load_file(over / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    base = quantized(run.path.parent / "base", tmp_path / "base", "int8")[0]
    assert not torch.equal(logits(loaded(straight)), logits(loaded(base)))
    names = [stage.name for stage in lineage.read(straight).stages]  # type: ignore[union-attr]
    assert names[-1] == "quantize" and "train" in names


# --- training over what was quantized --------------------------------------------------------------------------------


# --- what transformers alone makes of it -----------------------------------------------------------------------------


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_quantize_of_a_dense_model_needs_all(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("llama")
    with pytest.raises(ModelError, match="no routed experts") as refused:
        quantized(source, tmp_path / "out", "nf4")
    assert "--all" in refused.value.hint
    folder, _ = quantized(source, tmp_path / "out", "nf4", all=True)
    plain, done = multiplied_out(folder, source, tmp_path / "plain")
    assert len(done) == 14 and torch.allclose(logits(loaded(folder)), logits(loaded(plain)), atol=1e-5)


def test_quantize_refuses_what_is_quantized_or_there_already(tiny_base: Path, tmp_path: Path) -> None:
    folder, _ = quantized(tiny_base, tmp_path / "out", "nf4")
    before = (folder / "lineage.json").read_bytes()
    with pytest.raises(RunError, match="already there"):
        quantized(tiny_base, folder, "int8")
    assert (folder / "lineage.json").read_bytes() == before
    with pytest.raises(TuneError, match=r"quantized|4 bits"):
        quantized(folder, tmp_path / "twice", "int8")
    with pytest.raises(ConfigError, match="none"):
        quantized(tiny_base, tmp_path / "none", "none")


def test_quantize_names_a_cut_off_shard_and_leaves_nothing(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("qwen3_moe")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        quantized(source, tmp_path / "out", "nf4")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_quantize_refuses_weights_that_are_no_numbers(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("qwen3_moe")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    weights[name][3, 4] = float("nan")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    for to in FORMATS:
        with pytest.raises(ModelError, match=re.escape(name)):
            quantized(source, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()


def test_quantize_command_line_says_what_to_quantize(tiny_base: Path, tmp_path: Path) -> None:
    words = ["quantize", str(tiny_base), "--to", "int8", "--all", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "Quantize every layer" in done.output and "dsr1-tune chat" in done.output
    facts = lineage.read(tmp_path / "out").stage("quantize").facts  # type: ignore[union-attr]
    assert facts["settings"]["all"] and facts["to"] == "int8"
    assert facts["bytes_after"] == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    refused = CliRunner().invoke(cli.app, ["quantize", str(tiny_base), "--to", "int9"])
    assert isinstance(refused.exception, ConfigError) and "fp8" in refused.exception.hint


def test_quantize_without_out_writes_beside_the_source(tiny_model: Any) -> None:
    source = tiny_model("mixtral")
    console = Console(file=io.StringIO())
    folder = quantize.run(source, None, Quantize(to="fp8"), console)
    assert folder == source.with_name("model-fp8") and (folder / "config.json").is_file()


# --- streaming -------------------------------------------------------------------------------------------------------
