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
from bitsandbytes import functional as bnb
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.config import Base
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ConfigError, ModelError, RunError, TuneError
from dsr1_tune.export import lineage, quantize
from dsr1_tune.models import load
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.weights import converted
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec, write_weights
from dsr1_tune.moe import expert_lora, expert_rows
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_rows import RoutedRows
from dsr1_tune.moe.quantized_experts import audit_bits, memory_of
from dsr1_tune.quant import fp8
from dsr1_tune.quant.nf4 import is_held

IDS = torch.arange(20).view(1, -1)
FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral"]
FORMATS = ["nf4", "int8", "fp8"]
WORST = {"nf4": 0.11, "int8": 0.01, "fp8": 0.03}


def quantized(source: Path, out: Path, to: str, **settings: Any) -> tuple[Path, str]:
    """The folder, and what was said."""
    console = Console(file=io.StringIO(), width=120)
    folder = quantize.run(source, out, Quantize.model_validate({"to": to, **settings}), console)
    return folder, console.file.getvalue()  # type: ignore[attr-defined]


def loaded(folder: Path, dtype: str = "float32", quantized: bool = False) -> Any:
    return load.load(Base(model=str(folder), dtype=dtype), quantized=quantized).model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def multiplied_out(folder: Path, source: Path, out: Path) -> tuple[Path, list[str]]:
    """The folder in full precision, by bitsandbytes' own functions; and what was quantized."""
    stored, exact = load_file(folder / "model.safetensors"), load_file(source / "model.safetensors")
    weights, done = {}, []
    for name, tensor in exact.items():
        if f"{name}.absmax" in stored:
            parts = {key[len(name) + 1 :]: value for key, value in stored.items() if key.startswith(f"{name}.")}
            state = bnb.QuantState.from_dict(parts, torch.device("cpu"))
            assert state.shape == tensor.shape and state.dtype == tensor.dtype
            weights[name] = bnb.dequantize_4bit(stored[name], state)
        elif (scale := name.removesuffix("weight") + "SCB") in stored:
            weights[name] = bnb.int8_vectorwise_dequant(stored[name], stored[scale])
        elif f"{name}_scale_inv" in stored:
            weights[name] = fp8.dequantize(stored[name], stored[f"{name}_scale_inv"], (128, 128))
        else:
            assert torch.equal(stored[name], tensor)
            weights[name] = tensor
            continue
        done.append(name)
    shutil.copytree(source, out)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out, done


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_experts_come_back_as_their_library_reads_them(
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
def test_all_takes_every_layer_but_never_the_router(tiny_model: Any, tmp_path: Path, to: str) -> None:
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
def test_what_transformers_would_drop_is_kept(tiny_model: Any, tmp_path: Path, to: str) -> None:
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


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_experts_stored_in_one_tensor_are_taken_too(tiny_model: Any, tmp_path: Path, to: str) -> None:
    """gpt-oss: (E, D, 2I), gate and up in turn, with biases, which stay."""
    source = tiny_model("gpt_oss")
    folder, _ = quantized(source, tmp_path / "out", to)
    model = loaded(folder)
    # NF4 blocks and rows of int8 lie in the tensor as it is stored, so rounding it there is the same
    plain = loaded(source)
    with torch.no_grad():
        for block, held in zip(find_experts(plain), find_experts(model), strict=True):
            for name in block.parameters:
                back = held_matrices(held.module, name)
                weight = getattr(block.module, name)
                assert (back - weight).norm() / weight.norm() < WORST[to]
                weight.copy_(back)
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)


def held_matrices(module: Any, name: str) -> Tensor:
    from dsr1_tune.quant.nf4 import stored_weight

    return stored_weight(module, name).matrices(slice(None))  # type: ignore[union-attr]


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


def test_fp8_of_experts_in_one_tensor_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="several experts"):
        quantized(tiny_model("gpt_oss"), tmp_path / "out", "fp8")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_it_is_held_in_few_bits_and_answers_in_any_number_format(tiny_model: Any, tmp_path: Path, to: str) -> None:
    # wide enough for weights to outweigh the rest
    source = tiny_model("qwen3_moe", moe_intermediate_size=512, num_experts=8)
    folder, _ = quantized(source, tmp_path / "out", to)
    want, full = logits(loaded(folder)), memory_of(loaded(source))
    assert memory_of(loaded(folder)) < {"nf4": 0.3, "int8": 0.4}[to] * full
    got = logits(loaded(folder, dtype="bfloat16"))
    assert got.dtype == torch.bfloat16 and (got.float() - want).norm() / want.norm() < 0.1
    # the loader that chat and compare use, and a conversation
    answer = load_with_adapter(folder).model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert answer.shape == (1, 25)


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_as_a_gpu_groups_its_rows(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """Grouped products over some experts at a time give the CPU's numbers."""
    folder, _ = quantized(tiny_model("deepseek_v3"), tmp_path / "out", to)
    experts = find_experts(loaded(folder))[0].module
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    index, weight = torch.tensor([[0, 3]] * 15 + [[1, 3]]), torch.full((16, 2), 0.5)
    want = expert_lora.apply_experts(experts, x, index, weight, {})
    (want_dx,) = torch.autograd.grad(want.square().sum(), x)

    class Elsewhere(Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        @property
        def device(self) -> torch.device:
            return torch.device("cuda")

    sort = RoutedRows.sort.__func__  # type: ignore[attr-defined]
    there = classmethod(lambda cls, i, num_experts: sort(cls, i.as_subclass(Elsewhere), num_experts))
    monkeypatch.setattr(RoutedRows, "sort", there)
    monkeypatch.setattr(expert_rows, "PORTION_BYTES", 3 * 64 * 64 * 4)
    got = expert_lora.apply_experts(experts, x, index, weight, {})
    (got_dx,) = torch.autograd.grad(got.square().sum(), x)
    assert torch.allclose(got, want, atol=1e-4) and torch.allclose(got_dx, want_dx, atol=1e-3)


def test_a_quantized_folder_is_not_saved_in_another_layout(tiny_base: Path, tmp_path: Path) -> None:
    folder, _ = quantized(tiny_base, tmp_path / "out", "nf4")
    with pytest.raises(ValueError, match="serializ"):
        loaded(folder).save_pretrained(tmp_path / "again")


def test_shards_stay_shards_and_sidecars_come_along(tiny_model: Any, tmp_path: Path) -> None:
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


def test_a_run_is_merged_while_it_is_quantized(tiny_run: Any, tmp_path: Path) -> None:
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


def test_qlora_trains_over_an_nf4_folder_and_nothing_else_does(tiny_base: Path, tmp_path: Path, sums: Path) -> None:
    from dsr1_tune import config as configs
    from dsr1_tune.train import lora, qlora

    nf4, _ = quantized(tiny_base, tmp_path / "nf4", "nf4")
    int8, _ = quantized(tiny_base, tmp_path / "int8", "int8")
    tree = {"data": {"files": [str(sums)]}, "schedule": {"max_steps": 1, "max_tokens": 128}, "samples": 0}

    def settings(kind: Any, folder: Path) -> Any:
        return kind.model_validate({**tree, "base": {"model": str(folder)}, "out": str(tmp_path / "run")})

    quiet = Console(file=io.StringIO())
    with pytest.raises(ModelError, match="stored in 4 bits") as refused:
        lora.run(settings(configs.LoraRun, nf4), console=quiet)
    assert "qlora" in refused.value.hint
    with pytest.raises(ModelError, match="stored in 8 bits"):
        qlora.run(settings(configs.QloraRun, int8), console=quiet)
    assert not (tmp_path / "run").exists()
    run = qlora.run(settings(configs.QloraRun, nf4), console=quiet)
    assert (run.adapter / "adapter_model.safetensors").is_file()
    answered = logits(load_with_adapter(run.path).model)
    assert torch.isfinite(answered).all()
    bits = {line.part: line for line in audit_bits(loaded(nf4, quantized=True))}
    assert bits["routed_experts"].share == 1 and 0.05 < bits["routed_experts"].worst_error < 0.11


# --- what transformers alone makes of it -----------------------------------------------------------------------------


def test_transformers_alone_reads_fp8_and_refuses_the_others(tiny_model: Any, tmp_path: Path) -> None:
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


def test_of_a_dense_model_transformers_alone_reads_nf4_too(tiny_model: Any, tmp_path: Path) -> None:
    folder, _ = quantized(tiny_model("llama"), tmp_path / "out", "nf4", all=True)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    want = logits(loaded(folder))
    assert (logits(plain) - want).norm() / want.norm() < 0.02  # its products are in bfloat16


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_a_dense_model_needs_all(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("llama")
    with pytest.raises(ModelError, match="no routed experts") as refused:
        quantized(source, tmp_path / "out", "nf4")
    assert "--all" in refused.value.hint
    folder, _ = quantized(source, tmp_path / "out", "nf4", all=True)
    plain, done = multiplied_out(folder, source, tmp_path / "plain")
    assert len(done) == 14 and torch.allclose(logits(loaded(folder)), logits(loaded(plain)), atol=1e-5)


def test_experts_that_do_not_divide_are_refused_and_other_layers_left(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be held in nf4, such as .*experts.0.down_proj.weight \(60 × 33\)"):
        quantized(tiny_model("qwen3_moe", hidden_size=60, moe_intermediate_size=33), tmp_path / "out", "nf4")
    assert not (tmp_path / "out").exists()
    odd = tiny_model("qwen3_moe", name="odd", hidden_size=60, moe_intermediate_size=33)
    folder, _ = quantized(odd, tmp_path / "int8", "int8", all=True)
    assert torch.isfinite(logits(loaded(folder))).all()
    with safe_open(folder / "model.safetensors", framework="pt") as stored:  # odd sizes, and yet aligned
        assert all(stored.get_tensor(name) is not None for name in stored.keys())  # noqa: SIM118


def test_what_is_quantized_already_or_there_already_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    folder, _ = quantized(tiny_base, tmp_path / "out", "nf4")
    before = (folder / "lineage.json").read_bytes()
    with pytest.raises(RunError, match="already there"):
        quantized(tiny_base, folder, "int8")
    assert (folder / "lineage.json").read_bytes() == before
    with pytest.raises(TuneError, match=r"quantized|4 bits"):
        quantized(folder, tmp_path / "twice", "int8")
    with pytest.raises(ConfigError, match="none"):
        quantized(tiny_base, tmp_path / "none", "none")


def test_a_cut_off_shard_is_named_and_nothing_left(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("qwen3_moe")
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        quantized(source, tmp_path / "out", "nf4")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_that_are_no_numbers_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("qwen3_moe")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    weights[name][3, 4] = float("nan")
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    for to in FORMATS:
        with pytest.raises(ModelError, match=re.escape(name)):
            quantized(source, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights, name: weights.pop(f"{name}.nested_absmax"), "nested_absmax is missing"),
        (lambda weights, name: weights.update({f"{name}.absmax": weights[f"{name}.absmax"][:-1]}), "63 numbers"),
        (
            lambda weights, name: weights.update(
                {f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(b"{}"), dtype=torch.uint8)}
            ),
            "quant_state cannot be used",
        ),
    ],
)
def test_a_damaged_nf4_folder_is_refused_by_name(tiny_base: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder, _ = quantized(tiny_base, tmp_path / "out", "nf4")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    change(weights, name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said) as refused:
        loaded(folder)
    assert name in refused.value.message


def test_the_command_line_says_what_to_quantize(tiny_base: Path, tmp_path: Path) -> None:
    words = ["quantize", str(tiny_base), "--to", "int8", "--all", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "Quantize every layer" in done.output and "dsr1-tune chat" in done.output
    facts = lineage.read(tmp_path / "out").stage("quantize").facts  # type: ignore[union-attr]
    assert facts["settings"]["all"] and facts["to"] == "int8"
    assert facts["bytes_after"] == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    refused = CliRunner().invoke(cli.app, ["quantize", str(tiny_base), "--to", "int9"])
    assert isinstance(refused.exception, ConfigError) and "'fp8'" in refused.exception.message


def test_without_out_it_lies_beside_the_source(tiny_model: Any) -> None:
    source = tiny_model("mixtral")
    console = Console(file=io.StringIO())
    folder = quantize.run(source, None, Quantize(to="fp8"), console)
    assert folder == source.with_name("model-fp8") and (folder / "config.json").is_file()


# --- streaming -------------------------------------------------------------------------------------------------------


def test_a_weight_is_read_and_converted_once(tiny_base: Path, tmp_path: Path) -> None:
    class Counted(Checkpoint):
        reads: list[str] = []

        def read(self, name: str) -> Tensor:
            self.reads.append(name)
            return super().read(name)

    weights = Counted(tiny_base)
    chosen = [name for name in weights.names if "experts." in name and name.endswith("weight")]
    view = converted.Converted(
        weights,
        chosen,
        lambda name, spec: {name: Spec("I8", spec.shape), f"{name}.half": Spec("F16", spec.shape)},
        lambda name, weight: {name: weight.to(torch.int8), f"{name}.half": weight.half()},
    )
    write_weights(view, tmp_path)
    assert sorted(weights.reads) == sorted(chosen)
    stored, exact = load_file(tmp_path / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert all(torch.equal(stored[f"{name}.half"], exact[name].half()) for name in chosen)
    assert stored.keys() == exact.keys() | {f"{name}.half" for name in chosen}
