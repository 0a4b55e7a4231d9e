"""LoRA lands on the parts that were asked for and on no other; the audit counts it and the gradient check proves it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

from dsr1_tune.config import GROUPS, Adapter, Group
from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained.lora import (
    PartCoverage,
    add_lora,
    audit,
    check_gradients,
    load_plain_adapter,
)
from dsr1_tune.moe.anatomy import Anatomy, plain_name
from dsr1_tune.moe.expert_lora import GroupedExpertLora
from tests.families import config_of

IDS = torch.randint(2, 258, (2, 19), generator=torch.Generator().manual_seed(0))

HAS: dict[str, tuple[Group, ...]] = {
    "deepseek_v3": GROUPS,
    "deepseek_v2": GROUPS,
    "qwen3_moe": ("attention", "routed_experts"),
    "mixtral": ("attention", "routed_experts"),
    "gpt_oss": ("attention", "routed_experts"),
    "llama": ("attention", "dense_ffn"),
}
SPARSE = [family for family in HAS if family != "llama"]


@pytest.fixture
def model_of(tiny_model: Any) -> Any:
    """model_of("mixtral") is such a model, tiny."""
    return lambda family, **changes: AutoModelForCausalLM.from_pretrained(tiny_model(family, **changes))


def adapted_weights(model: nn.Module) -> set[str]:
    """The base's own names of the weights that an update reaches."""
    return {
        plain_name(f"{name}.{layer.parameter_name if isinstance(layer, ParamWrapper) else 'weight'}")
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def weights_to_adapt(model: nn.Module, groups: tuple[Group, ...]) -> set[str]:
    """All matrices of these parts: weights of two dimensions, or of three where experts are fused."""
    part_of = Anatomy(model)
    return {
        name
        for name, parameter in model.named_parameters()
        if part_of(name) in groups and parameter.dim() >= 2 and not name.endswith("bias")
    }


def randomize_lora(model: nn.Module) -> None:
    """As if trained: LoRA's B starts at zero."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.2)


def backward(model: nn.Module) -> None:
    model(input_ids=IDS, labels=IDS).loss.backward()


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


# --- what gets an update ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "group"), [(family, group) for family in HAS for group in HAS[family]])
def test_lora_adapts_each_group_wholly_and_alone(model_of: Any, family: str, group: Group) -> None:
    base = model_of(family)
    wanted = weights_to_adapt(base, (group,))
    assert wanted
    model = add_lora(base, Adapter(groups=(group,)))
    assert adapted_weights(model) == wanted
    part_of = Anatomy(model)
    assert {part_of(name) for name, p in model.named_parameters() if p.requires_grad} == {group}


@pytest.mark.parametrize("family", HAS)
def test_lora_adapts_all_groups_together(model_of: Any, family: str) -> None:
    base = model_of(family)
    wanted = weights_to_adapt(base, GROUPS)
    model = add_lora(base, Adapter())
    assert adapted_weights(model) == wanted
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trained) == 2 * len(wanted)


@pytest.mark.parametrize("groups", [("dense_ffn", "shared_experts"), ("shared_experts", "routed_experts")])
def test_lora_groups_combine(model_of: Any, groups: tuple[Group, ...]) -> None:
    base = model_of("deepseek_v3", num_hidden_layers=3, first_k_dense_replace=2, q_lora_rank=16)
    wanted = weights_to_adapt(base, groups)
    assert adapted_weights(add_lora(base, Adapter(groups=groups))) == wanted


@pytest.mark.parametrize("family", SPARSE)
def test_lora_leaves_the_router_alone(model_of: Any, family: str) -> None:
    model = add_lora(model_of(family), Adapter())
    part_of = Anatomy(model)
    router = {name: p for name, p in model.named_parameters() if part_of(name) == "router"}
    assert router
    assert not any(".lora_" in name for name in router)
    assert not any(parameter.requires_grad for parameter in router.values())
    leaf = "router" if family == "gpt_oss" else "gate"
    assert not any(f".mlp.{leaf}." in name and ".lora_" in name for name, _ in model.named_parameters())


def test_lora_leaves_a_linear_router_alone_too() -> None:
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
    base = AutoModelForCausalLM.from_config(config)
    assert isinstance(base.model.layers[0].mlp.shared_expert_gate, nn.Linear)
    wanted = weights_to_adapt(base, GROUPS)
    model = add_lora(base, Adapter())
    assert adapted_weights(model) == wanted
    assert not any("gate.lora_" in name for name, _ in model.named_parameters())


def test_shared_experts_that_are_fused_learn_too(tmp_path: Path) -> None:
    def base() -> Any:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of("inkling_text", n_shared_experts=2)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
        return model

    model = add_lora(base(), Adapter(rank=2, groups=("shared_experts",)))
    assert {name.rpartition(".")[2] for name in adapted_weights(model)} == {"gate_proj", "up_proj", "down_proj"}
    line = next(line for line in audit(model) if line.part == "shared_experts")
    assert line.num_adapted == line.num_base > 0
    model(IDS, labels=IDS).loss.backward()
    assert check_gradients(model)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    theirs, ours = load_plain_adapter(base(), tmp_path)(IDS).logits, model.eval()(IDS).logits
    assert (theirs - ours).abs().max() < 1e-5 < (base()(IDS).logits - ours).abs().max()


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v2"])
def test_shared_experts_and_dense_first_layers_get_what_peft_alone_would_drop(model_of: Any, family: str) -> None:
    model = add_lora(model_of(family, num_hidden_layers=3), Adapter(rank=4)).get_base_model()
    for block in (model.model.layers[0].mlp, model.model.layers[1].mlp.shared_experts):
        for name in ("gate_proj", "up_proj", "down_proj"):
            layer = getattr(block, name)
            assert isinstance(layer, LoraLayer)
            assert layer.lora_A["default"].weight.shape == (4, layer.get_base_layer().in_features)
            assert layer.lora_B["default"].weight.shape == (layer.get_base_layer().out_features, 4)


@pytest.mark.parametrize("family", SPARSE)
def test_lora_gives_each_expert_the_requested_rank(model_of: Any, family: str) -> None:
    model = add_lora(model_of(family), Adapter(rank=3, alpha=12))
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert {layer.r["default"] for layer in layers} == {3}
    assert {layer.scaling["default"] for layer in layers} == {12 / 3}
    fused = [layer for layer in layers if isinstance(layer, ParamWrapper) and layer.num_experts > 1]
    assert {layer.parameter_name for layer in fused} == {"gate_up_proj", "down_proj"}
    for layer in fused:
        assert layer.lora_A["default"].weight.shape[0] == 4 * 3
        assert layer.lora_B["default"].weight.shape[1] == 4 * 3


def test_lora_update_starts_at_zero(model_of: Any) -> None:
    base = model_of("deepseek_v3")
    before = logits_of(base)
    torch.testing.assert_close(logits_of(add_lora(base, Adapter())), before, rtol=1e-4, atol=1e-4)


def test_lora_of_experts_is_applied_by_grouped_products(model_of: Any) -> None:
    model = add_lora(model_of("qwen3_moe"), Adapter())
    assert sum(isinstance(module, GroupedExpertLora) for module in model.modules()) == 2


@pytest.mark.parametrize(
    ("family", "groups"),
    [("llama", ("routed_experts",)), ("llama", ("shared_experts", "routed_experts")), ("mixtral", ("dense_ffn",))],
)
def test_lora_refuses_groups_that_the_model_lacks(model_of: Any, family: str, groups: tuple[Group, ...]) -> None:
    with pytest.raises(ModelError) as refused:
        add_lora(model_of(family), Adapter(groups=groups))
    assert all(group in refused.value.message for group in groups)
    assert "adapter.groups" in refused.value.hint


# --- the audit -------------------------------------------------------------------------------------------------------


def test_audit_equals_a_count_by_hand(model_of: Any) -> None:
    """A DeepSeek-V3 of width 64 with 258 tokens: one dense layer of 128, one of 4 experts of 64 and a shared one."""
    lines = audit(add_lora(model_of("deepseek_v3"), Adapter(rank=4)))

    # q 64→128, kv_a 64→80, kv_b 64→128, o 64→64, in two layers; LoRA has rank·(in + out) for each.
    attention = 2 * (64 * 128 + 64 * 80 + 64 * 128 + 64 * 64)
    attention_lora = 2 * 4 * ((64 + 128) + (64 + 80) + (64 + 128) + (64 + 64))
    dense, dense_lora = 3 * 64 * 128, 3 * 4 * (64 + 128)
    shared, shared_lora = 3 * 64 * 64, 3 * 4 * (64 + 64)
    # gate_up 64→128 and down 64→64, for each of four experts.
    routed = 4 * (64 * 128 + 64 * 64)
    routed_lora = 4 * 4 * ((64 + 128) + (64 + 64))
    router = 4 * 64
    embeddings = 2 * 258 * 64
    norms = (2 * 3 + 1) * 64
    assert lines == [
        PartCoverage("attention", attention, attention, attention_lora, attention),
        PartCoverage("dense_ffn", dense, dense, dense_lora, dense),
        PartCoverage("shared_experts", shared, shared, shared_lora, shared),
        PartCoverage("routed_experts", routed, routed, routed_lora, routed),
        PartCoverage("router", router, 0, 0, router),
        PartCoverage("embeddings", embeddings, 0, 0, embeddings),
        PartCoverage("norms", norms, 0, 0, norms),
    ]
    assert sum(line.num_trained for line in lines) == attention_lora + dense_lora + shared_lora + routed_lora


def test_audit_of_a_part_of_the_model(model_of: Any) -> None:
    """Biases are the base's, but no update reaches them."""
    lines = {
        line.part: line for line in audit(add_lora(model_of("gpt_oss"), Adapter(rank=2, groups=("routed_experts",))))
    }
    weights, biases = 2 * 4 * (64 * 256 + 128 * 64), 2 * 4 * (256 + 64)
    lora = 2 * 4 * 2 * ((64 + 256) + (128 + 64))
    assert lines["routed_experts"] == PartCoverage("routed_experts", weights + biases, weights, lora, weights + biases)
    assert lines["attention"].num_base == lines["attention"].num_frozen > 0
    assert lines["attention"].num_adapted == lines["attention"].num_trained == 0


def test_audit_of_a_bare_model(model_of: Any) -> None:
    model = model_of("llama")
    lines = audit(model)
    assert (
        sum(line.num_base for line in lines)
        == sum(p.numel() for p in model.parameters())
        == sum(line.num_trained for line in lines)
    )
    assert all(line.num_adapted == line.num_base and line.num_frozen == 0 for line in lines)
    assert [line.part for line in lines] == ["attention", "dense_ffn", "embeddings", "norms"]


# --- the gradient check ----------------------------------------------------------------------------------------------


def lora_of(model: nn.Module, group: str) -> list[nn.Parameter]:
    part_of = Anatomy(model)
    return [p for name, p in model.named_parameters() if p.requires_grad and part_of(name) == group]


@pytest.mark.parametrize("family", HAS)
def test_check_gradients_passes_a_step_that_reaches_every_part(model_of: Any, family: str) -> None:
    model = add_lora(model_of(family), Adapter())
    backward(model)
    check_gradients(model)


@pytest.mark.parametrize("nothing", ["zero", "none"])
@pytest.mark.parametrize("group", GROUPS)
def test_check_gradients_names_a_part_without_gradient(model_of: Any, group: Group, nothing: str) -> None:
    model = add_lora(model_of("deepseek_v3"), Adapter())
    backward(model)
    for parameter in lora_of(model, group):
        parameter.grad = torch.zeros_like(parameter) if nothing == "zero" else None
    with pytest.raises(ModelError) as refused:
        check_gradients(model)
    assert group in refused.value.message
    assert not any(other in refused.value.message for other in GROUPS if other != group)
    assert refused.value.hint


def test_check_gradients_names_all_idle_parts_at_once(model_of: Any) -> None:
    model = add_lora(model_of("deepseek_v3"), Adapter())
    with pytest.raises(ModelError) as refused:
        check_gradients(model)
    assert all(group in refused.value.message for group in GROUPS)


def test_check_gradients_finds_experts_that_ignore_their_update(model_of: Any) -> None:
    model = add_lora(model_of("qwen3_moe"), Adapter())
    for module in model.modules():
        if isinstance(module, GroupedExpertLora):
            module.forward = module.get_base_layer().forward
    backward(model)
    with pytest.raises(ModelError, match="routed_experts"):
        check_gradients(model)


def test_check_gradients_lets_an_overflow_of_loss_scaling_pass(model_of: Any) -> None:
    model = add_lora(model_of("deepseek_v3"), Adapter())
    backward(model)
    assert check_gradients(model, may_overflow=True)
    lora_of(model, "attention")[-1].grad.view(-1)[7] = math.inf
    assert not check_gradients(model, may_overflow=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("group", ["attention", "routed_experts"])
def test_check_gradients_names_a_gradient_that_is_no_number(model_of: Any, group: Group, bad: float) -> None:
    model = add_lora(model_of("deepseek_v3"), Adapter())
    backward(model)
    victim = lora_of(model, group)[-1]
    victim.grad.view(-1)[7] = bad
    name = next(name for name, parameter in model.named_parameters() if parameter is victim)
    with pytest.raises(ModelError, match="not finite") as refused:
        check_gradients(model)
    assert plain_name(name) in refused.value.message


def test_check_gradients_takes_a_part_with_one_idle_matrix_for_trained(model_of: Any) -> None:
    """At the first step LoRA's A has no gradient, as its B is zero."""
    for position in (0, -1):
        model = add_lora(model_of("deepseek_v3"), Adapter())
        randomize_lora(model)
        backward(model)
        for group in GROUPS:
            lora_of(model, group)[position].grad.zero_()
        check_gradients(model)


def test_check_gradients_asks_none_of_frozen_parameters(model_of: Any) -> None:
    model = add_lora(model_of("deepseek_v3"), Adapter(groups=("attention",)))
    backward(model)
    check_gradients(model)


# --- saved and loaded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HAS)
def test_plain_peft_loads_what_was_saved(tiny_model: Any, tmp_path: Path, family: str) -> None:
    folder = tiny_model(family)
    base = AutoModelForCausalLM.from_pretrained(folder)
    without = logits_of(base)
    model = add_lora(base, Adapter(rank=4))
    randomize_lora(model)
    want = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")

    plain = load_plain_adapter(AutoModelForCausalLM.from_pretrained(folder).train(), tmp_path / "adapter")
    assert isinstance(plain, PeftModel)
    assert not plain.training
    assert not any(isinstance(module, GroupedExpertLora) for module in plain.modules())
    torch.testing.assert_close(logits_of(plain), want, rtol=1e-4, atol=1e-4)
    assert (want - without).norm() > 0.1 * without.norm()


@pytest.mark.parametrize("group", HAS["deepseek_v3"])
def test_plain_peft_loads_each_group(tiny_model: Any, tmp_path: Path, group: Group) -> None:
    folder = tiny_model("deepseek_v3")
    base = AutoModelForCausalLM.from_pretrained(folder)
    without = logits_of(base)
    model = add_lora(base, Adapter(rank=4, groups=(group,)))
    randomize_lora(model)
    want = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    plain = load_plain_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(plain), want, rtol=1e-4, atol=1e-4)
    assert (want - without).norm() > 0.01 * without.norm()
