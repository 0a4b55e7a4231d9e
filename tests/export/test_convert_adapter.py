"""Adapters taken apart and put together: the same bits, the same updates as PEFT's, and clear refusals."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter, Base, Router
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.export import convert_adapter
from dsr1_tune.models.load import locate
from dsr1_tune.models.trained.lora import add_lora, quiet_patterns, save_adapter
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.moe.anatomy import plain_name
from tests.conftest import TinyModel, save_tiny
from tests.export.conftest import TinyRun
from tests.families import save_family

Made = Callable[..., Path]
_FILE = "adapter_model.safetensors"
OTHERS = ("aria_text", "inkling2_text", "nemotron_h")
"""Of tests/families.py."""
FAMILIES = ("deepseek_v3", "qwen3_moe", "mixtral", "nemotron_h", pytest.param("deepseek_v2", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Callable[..., Path]:
    """made("mixtral", rank=4) is an adapter with random numbers on a tiny base, which lies beside it as `base`."""
    known: dict[str, Path] = {}

    def make(family: str, router: str = "frozen", **settings: Any) -> Path:
        key = json.dumps([family, router, settings])
        if key not in known:
            folder = tmp_path_factory.mktemp(family)
            located = locate(
                Base(
                    model=str((save_family if family in OTHERS else save_tiny)(folder / "base", tiny_tokenizer, family))
                )
            )
            model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
            wrapped = add_lora(model, Adapter(**settings), Router.model_validate({"mode": router}))
            torch.manual_seed(1)
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.1)
            save_adapter(wrapped, located, folder / "adapter")
            known[key] = folder / "adapter"
        return known[key]

    return make


def convert(adapter: Path, to: Any, out: Path) -> tuple[Path, str]:
    said = io.StringIO()
    return convert_adapter.run(adapter, to, out, Console(file=said, width=500)), said.getvalue()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def change(folder: Path, **settings: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config(folder) | settings))


def peft_updates(adapter: Path, base: Path) -> dict[str, torch.Tensor]:
    """What PEFT adds to each stored tensor."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layout = Layout.of(model, load_file(base / "model.safetensors"))
    with quiet_patterns():
        wrapped = PeftModel.from_pretrained(model, str(adapter))
    updates = {}
    for name, layer in wrapped.named_modules():
        if isinstance(layer, LoraLayer) and layer.lora_A:
            leaf = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
            delta = layer.get_delta_weight("default").detach()
            updates |= {p.stored: p.of(delta) for p in layout.pieces_of(f"{plain_name(name)}.{leaf}")}
    return updates


def plain_updates(adapter: Path) -> dict[str, torch.Tensor]:
    """s·B·A for every pair of factors in the file, with the scale that adapter_config.json says, as vLLM reads it."""
    import re

    told, found = config(adapter), tensors(adapter)

    def value(patterns: dict[str, Any], name: str, usual: Any) -> Any:
        return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), usual)

    updates = {}
    for key, a in found.items():
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = value(told["rank_pattern"], name, told["r"])
            assert rank == a.shape[0]
            scale = value(told["alpha_pattern"], name, told["lora_alpha"]) / (rank**0.5 if told["use_rslora"] else rank)
            updates[f"{name}.weight"] = scale * found[key.replace("lora_A", "lora_B")] @ a
    return updates


@pytest.mark.parametrize("family", FAMILIES)
def test_converted_adapter_there_and_back_is_the_same_file(made: Made, tmp_path: Path, family: str) -> None:
    adapter = made(family)
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    together, _ = convert(apart, "peft-fused", tmp_path / "together")
    before, after = tensors(adapter), tensors(together)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert (adapter / _FILE).read_bytes() == (together / _FILE).read_bytes()
    wanted, got = peft_updates(adapter, adapter.parent / "base"), plain_updates(apart)
    assert wanted.keys() == got.keys()
    assert sum(".experts." in name for name in got) >= 12
    for name, update in wanted.items():
        torch.testing.assert_close(got[name], update, atol=1e-6, rtol=1e-4)
    again = peft_updates(together, adapter.parent / "base")
    assert all(torch.equal(again[name], update) for name, update in wanted.items())
    assert not (apart / "model.safetensors.index.json").exists()
    assert config(apart)["target_parameters"] is None
    assert (apart / "tokenizer.json").read_bytes() == (adapter / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_converted_adapter_is_read_by_peft(made: Made, tmp_path: Path, family: str) -> None:
    """PEFT's own conversion of adapters from before transformers 5 is another's reading of the same layout."""
    adapter = made(family)
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    wanted = peft_updates(adapter, adapter.parent / "base")
    got = peft_updates(apart, adapter.parent / "base")
    experts = [name for name in wanted if ".experts." in name]
    assert experts
    for name in experts:
        torch.testing.assert_close(got[name], wanted[name], atol=1e-6, rtol=1e-4)


def test_converted_adapter_keeps_ranks_of_its_own_and_rslora(made: Made, tmp_path: Path) -> None:
    settings = {"ranks": {"routed_experts": 4}, "alphas": {"shared_experts": 5.0}, "rslora": True}
    adapter = made("deepseek_v3", **settings)
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    wanted = peft_updates(adapter, adapter.parent / "base")
    for name, update in plain_updates(apart).items():
        torch.testing.assert_close(update, wanted[name], atol=1e-6, rtol=1e-4)
    assert set(config(apart)["rank_pattern"].values()) == {4}
    together, _ = convert(apart, "peft-fused", tmp_path / "together")
    again = peft_updates(together, adapter.parent / "base")
    assert all(torch.equal(again[name], update) for name, update in wanted.items())


def test_converted_adapter_of_experts_names_no_other_layer(made: Made, tmp_path: Path) -> None:
    adapter = made("deepseek_v3", groups=("routed_experts",))
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    names = config(apart)["target_modules"]
    assert len(names) == 12
    shared = "model.layers.1.mlp.shared_experts.gate_proj"
    assert not any(shared == name or shared.endswith(f".{name}") for name in names)


def test_fused_gate_and_up_that_do_not_share_a_take_twice_the_rank(made: Made, tmp_path: Path) -> None:
    adapter = made("qwen3_moe")
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    found = tensors(apart)
    key = next(name for name in found if ".up_proj.lora_A" in name)
    save_file({**found, key: found[key] + 0.5}, apart / "adapter_model.safetensors")
    together, said = convert(apart, "peft-fused", tmp_path / "together")
    assert "they take rank 16" in said
    wanted, got = plain_updates(apart), peft_updates(together, adapter.parent / "base")
    assert wanted.keys() == got.keys()
    for name, update in wanted.items():
        torch.testing.assert_close(got[name], update, atol=1e-6, rtol=1e-4)


def test_fused_expert_without_factors_gets_zeros(made: Made, tmp_path: Path) -> None:
    adapter = made("qwen3_moe")
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    found = tensors(apart)
    kept = {name: tensor for name, tensor in found.items() if "layers.0.mlp.experts.2.down_proj" not in name}
    assert len(kept) == len(found) - 2
    save_file(kept, apart / "adapter_model.safetensors")
    together, said = convert(apart, "peft-fused", tmp_path / "together")
    assert "Without factors of model.layers.0.mlp.experts.down_proj: 1 matrix;" in said
    got = peft_updates(together, adapter.parent / "base")
    assert not got.pop("model.layers.0.mlp.experts.2.down_proj.weight").any()
    for name, update in plain_updates(apart).items():
        torch.testing.assert_close(got[name], update, atol=1e-6, rtol=1e-4)


def test_converted_adapter_takes_trained_routers_along(made: Made, tmp_path: Path) -> None:
    adapter = made("mixtral", "train")
    apart, said = convert(adapter, "per-expert", tmp_path / "apart")
    assert "vLLM refuses adapters with them" in " ".join(said.split())
    routers = [name for name in tensors(apart) if "lora_" not in name]
    assert routers and all("block_sparse_moe.gate" in name for name in routers)
    together, _ = convert(apart, "peft-fused", tmp_path / "together")
    before, after = tensors(adapter), tensors(together)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_adapter_that_cannot_be_converted_is_refused(made: Made, tmp_path: Path, tiny_model: TinyModel) -> None:
    adapter = made("qwen3_moe")
    out = tmp_path / "out"

    def refused(adapter: Path, to: str = "per-expert") -> str:
        with pytest.raises(ModelError) as caught:
            convert(adapter, to, out)
        assert not out.exists()
        return str(caught.value)

    assert "is peft-fused already" in refused(adapter, "peft-fused")
    assert "holds no adapter" in refused(tmp_path)
    dense = made("qwen3_moe", groups=("attention",))
    assert "no factors on routed experts" in refused(dense)
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    assert "is per-expert already" in refused(apart)
    change(apart, r=4)
    assert "have rank 8, but adapter_config.json says 4" in refused(apart, "peft-fused")
    change(apart, r=8, base_model_name_or_path=str(tiny_model("deepseek_v3")))
    assert "is nowhere in the base" in refused(apart, "peft-fused")
    change(apart, peft_type="IA3")
    assert "is no LoRA adapter (IA3)" in refused(apart, "peft-fused")


@pytest.mark.parametrize("family", ["gpt_oss", "aria_text", "inkling2_text"])
def test_adapter_of_experts_in_one_tensor_says_the_same_for_each_and_comes_back(
    made: Made, tmp_path: Path, family: str
) -> None:
    """Gate and up that alternate, (in, out) matrices, and another order on disk than in the model."""
    adapter = made(family)
    apart, _ = convert(adapter, "per-expert", tmp_path / "apart")
    together, _ = convert(apart, "peft-fused", tmp_path / "together")
    before, after = tensors(adapter), tensors(together)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    model = AutoModelForCausalLM.from_pretrained(adapter.parent / "base", dtype=torch.float32)
    with quiet_patterns():
        wrapped = PeftModel.from_pretrained(model, str(adapter))
    deltas = {
        f"{plain_name(name)}.{layer.parameter_name}": layer.get_delta_weight("default").detach()
        for name, layer in wrapped.named_modules()
        if isinstance(layer, ParamWrapper) and layer.lora_A
    }
    ours = plain_updates(apart)
    block = "model.layers.1.mlp.experts"
    gate_up, down = deltas[f"{block}.gate_up_proj"], deltas[f"{block}.down_proj"]
    if family != "inkling2_text":
        gate_up, down = gate_up.mT, down.mT
    gate, up = (gate_up[:, ::2], gate_up[:, 1::2]) if family == "gpt_oss" else gate_up.chunk(2, dim=1)
    stored = block.replace("model.", "model.llm.", 1) if family == "inkling2_text" else block
    for part, delta in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
        for expert in range(len(delta)):
            assert torch.allclose(ours[f"{stored}.{expert}.{part}.weight"], delta[expert], atol=1e-5), (part, expert)


def test_run_is_taken_for_its_adapter(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("qwen3_moe", "lora")
    apart, said = convert(run.path, "per-expert", tmp_path / "apart")
    assert f"{len(tensors(apart))} tensors" in said and len(tensors(apart)) > len(tensors(run.adapter))
    with pytest.raises(RunError, match="is already there"):
        convert(run.path, "per-expert", apart)
