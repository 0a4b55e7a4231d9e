"""Every parameter belongs to the part that it says, whatever the architecture calls it and whoever wraps it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma4TextConfig, NemotronHConfig, Qwen2MoeConfig

from dsr1_tune.models.meta import meta_model
from dsr1_tune.moe.anatomy import PARTS, Anatomy, find_experts, find_linears, plain_name
from tests.families import config_of

# Parameter tensors by part, counted by hand for two layers; DeepSeek's first layer is dense.
DEEPSEEK = {
    "attention": 8, "dense_ffn": 3, "shared_experts": 3, "routed_experts": 2, "router": 1, "embeddings": 2, "norms": 7
}  # fmt: skip
TENSORS = {
    "deepseek_v3": DEEPSEEK,
    "deepseek_v2": DEEPSEEK,
    "qwen3_moe": {"attention": 8, "routed_experts": 4, "router": 2, "embeddings": 2, "norms": 9},
    "mixtral": {"attention": 8, "routed_experts": 4, "router": 2, "embeddings": 2, "norms": 5},
    "gpt_oss": {"attention": 18, "routed_experts": 8, "router": 4, "embeddings": 2, "norms": 5},
    "llama": {"attention": 8, "dense_ffn": 6, "embeddings": 1, "norms": 5},
}
SPARSE = [family for family in TENSORS if family != "llama"]

# A fragment that only the names of this part have, in any of these families.
TELLTALE = {
    "attention": ".self_attn.",
    "shared_experts": ".shared_experts.",
    "routed_experts": ".mlp.experts.",
    "norms": "norm",
}


@pytest.fixture
def model_of(tiny_model: Any) -> Any:
    """model_of("mixtral") is such a model, tiny."""
    return lambda family, **changes: AutoModelForCausalLM.from_pretrained(tiny_model(family, **changes))


def parts_of(model: Any) -> dict[str, str]:
    part_of = Anatomy(model)
    return {name: part_of(name) for name, _ in model.named_parameters()}


@pytest.mark.parametrize("family", TENSORS)
def test_anatomy_gives_every_parameter_its_part(model_of: Any, family: str) -> None:
    assert Counter(parts_of(model_of(family)).values()) == TENSORS[family]


@pytest.mark.parametrize("family", TENSORS)
def test_anatomy_agrees_with_the_names(model_of: Any, family: str) -> None:
    for name, part in parts_of(model_of(family)).items():
        if "norm" in name:
            assert part == "norms", name
            continue
        for telltale_part, fragment in TELLTALE.items():
            assert (part == telltale_part) == (fragment in name), name


@pytest.mark.parametrize("family", SPARSE)
def test_the_router_is_the_router_and_nothing_else_is(model_of: Any, family: str) -> None:
    model = model_of(family)
    routers = {name for name, part in parts_of(model).items() if part == "router"}
    leaf = "mlp.router." if family == "gpt_oss" else "mlp.gate."
    assert routers == {name for name, _ in model.named_parameters() if leaf in name}
    assert routers


def test_dense_first_layers_are_told_from_shared_experts(model_of: Any) -> None:
    parts = parts_of(model_of("deepseek_v3", num_hidden_layers=3, first_k_dense_replace=2))
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert parts[f"model.layers.0.mlp.{name}.weight"] == "dense_ffn"
        assert parts[f"model.layers.1.mlp.{name}.weight"] == "dense_ffn"
        assert parts[f"model.layers.2.mlp.shared_experts.{name}.weight"] == "shared_experts"


def test_a_gate_on_the_shared_expert_is_no_shared_expert() -> None:
    config = Qwen2MoeConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    parts = parts_of(AutoModelForCausalLM.from_config(config))
    block = "model.layers.0.mlp"
    assert parts[f"{block}.shared_expert_gate.weight"] == "router"
    assert parts[f"{block}.gate.weight"] == "router"
    assert {part for name, part in parts.items() if ".shared_expert." in name} == {"shared_experts"}


def test_experts_right_in_the_layer_leave_their_neighbours_what_they_are() -> None:
    config = Gemma4TextConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        num_attention_heads=2,
        num_key_value_heads=2,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
        hidden_size_per_layer_input=0,
    )
    with torch.device("meta"):
        parts = parts_of(AutoModelForCausalLM.from_config(config))
    layer = "model.layers.0"
    assert parts[f"{layer}.experts.down_proj"] == "routed_experts"
    assert parts[f"{layer}.router.proj.weight"] == parts[f"{layer}.router.per_expert_scale"] == "router"
    assert parts[f"{layer}.mlp.gate_proj.weight"] == "dense_ffn"
    assert parts[f"{layer}.self_attn.q_proj.weight"] == "attention"
    assert parts[f"{layer}.pre_feedforward_layernorm_2.weight"] == "norms"


def test_a_block_that_shares_its_name_with_attention() -> None:
    """Nemotron-H calls attention, mamba and the mixture of experts alike: mixer; its experts have no gate."""
    config = NemotronHConfig(
        vocab_size=32,
        hidden_size=32,
        layers_block_type=["attention", "moe"],
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
        n_group=1,
        topk_group=1,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert [block.parameters for block in find_experts(model)] == [("up_proj", "down_proj")]
    parts = parts_of(model)
    assert parts["model.layers.0.mixer.q_proj.weight"] == "attention"
    assert parts["model.layers.1.mixer.experts.up_proj"] == "routed_experts"
    assert parts["model.layers.1.mixer.shared_experts.up_proj.weight"] == "shared_experts"
    assert parts["model.layers.1.mixer.gate.weight"] == "router"


@pytest.mark.parametrize("family", TENSORS)
def test_anatomy_is_the_same_under_peft(model_of: Any, family: str) -> None:
    model = model_of(family)
    before = parts_of(model)
    before_wrapping = Anatomy(model)
    linears = [name for name, _, part in find_linears(model) if part != "embeddings"]
    fused = [] if family == "llama" else ["experts.gate_up_proj", "experts.down_proj"]
    weights = [f"{name}.weight" for name in linears if "shared_experts" in name]
    modules = [name for name in linears if "self_attn" in name]
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=modules, target_parameters=weights + fused))

    after = {plain_name(name): part for name, part in parts_of(peft_model).items() if ".lora_" not in name}
    assert after == before
    lora = [name for name, _ in peft_model.named_parameters() if ".lora_" in name]
    assert len(lora) == 2 * (len(modules) + len(weights) + len(fused) * len(find_experts(peft_model)))
    for part_of in (Anatomy(peft_model), before_wrapping):
        for name in lora:
            owner = plain_name(name.partition(".lora_")[0])
            assert {part_of(name)} == {part for other, part in before.items() if other.startswith(f"{owner}.")}, name


@pytest.mark.parametrize(("family", "layers"), [("deepseek_v3", (1, 2)), ("qwen3_moe", (0, 1, 2))])
def test_experts_are_found_layer_by_layer(model_of: Any, family: str, layers: tuple[int, ...]) -> None:
    model = model_of(family, num_hidden_layers=3)
    blocks = find_experts(model)
    assert [block.name for block in blocks] == [f"model.layers.{layer}.mlp.experts" for layer in layers]
    assert all(block.module is model.get_submodule(block.name) for block in blocks)
    assert all(block.parameters == ("gate_up_proj", "down_proj") for block in blocks)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_are_counted_in_either_layout(model_of: Any, family: str) -> None:
    changes = {"num_local_experts": 6} if family == "gpt_oss" else {"num_experts": 6}
    assert [block.num_experts for block in find_experts(model_of(family, **changes))] == [6, 6]


def test_wrapped_experts_are_found_once(model_of: Any) -> None:
    model = model_of("mixtral")
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    blocks = find_experts(get_peft_model(model, config))
    assert [plain_name(block.name) for block in blocks] == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert [block.num_experts for block in blocks] == [4, 4]


def test_experts_of_a_dense_model_are_none(model_of: Any) -> None:
    assert find_experts(model_of("llama")) == []


def test_linears_come_with_their_part(model_of: Any) -> None:
    model = model_of("deepseek_v3")
    linears = list(find_linears(model))
    assert all(
        isinstance(module, torch.nn.Linear) and module is model.get_submodule(name) for name, module, _ in linears
    )
    assert Counter(part for _, _, part in linears) == {
        "attention": 8, "dense_ffn": 3, "shared_experts": 3, "embeddings": 1
    }  # fmt: skip


def test_anatomy_of_an_unknown_parameter_is_other(model_of: Any) -> None:
    part_of = Anatomy(model_of("llama"))
    assert part_of("model.vision.patch.weight") == "other"
    assert "other" in PARTS


def test_a_norm_inside_a_router_is_the_routers() -> None:
    model = meta_model(config_of("zaya"))
    part_of = Anatomy(model)
    norms = [name for name, _ in model.named_parameters() if "norm" in name]
    assert {part_of(name) for name in norms if ".gate." in name} == {"router"}
    assert {part_of(name) for name in norms if ".gate." not in name} <= {"norms", "attention"}
    gemma = Anatomy(meta_model(config_of("gemma4_text")))
    assert gemma("model.layers.0.input_layernorm.weight") == "norms"
