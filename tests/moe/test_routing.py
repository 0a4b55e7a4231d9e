"""Routers stay as they are, are trained, or are balanced, and what cannot work with a model is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen2MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from dsr1_tune.config import Adapter, Base, Router
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load, locate
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.lora import add_lora, audit, check_gradients, load_plain_adapter, save_adapter
from dsr1_tune.moe.anatomy import find_experts, find_routers
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.moe.routing import AuxiliaryLoss, check_routers, load_balancing_loss, move_biases, open_routers
from tests.families import config_of

IDS = torch.randint(2, 258, (4, 33), generator=torch.Generator().manual_seed(0))
SOFTMAX = ("qwen3_moe", "mixtral", "deepseek_v2", "gpt_oss")
SPARSE = ("deepseek_v3", *SOFTMAX)
LORA = Adapter(rank=4, groups=("attention",))


@pytest.fixture
def model_of(tiny_model: Any) -> Any:
    """model_of("mixtral") is such a model, tiny."""
    return lambda family, **changes: AutoModelForCausalLM.from_pretrained(tiny_model(family, **changes))


def router_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{router.name}.{name}": tensor.detach().clone()
        for router in find_routers(model)
        for name, tensor in (*router.module.named_parameters(), *router.module.named_buffers())
    }


def violation(model: nn.Module) -> float:
    """MaxVio, the largest of the layers."""
    monitor = RoutingMonitor(model)
    with torch.no_grad():
        model(IDS)
    monitor.close()
    return float(monitor.take().max_violation_L.max())


def skew(model: nn.Module, amount: float) -> None:
    """Let the first experts of each layer be chosen by almost every token."""
    for router in find_routers(model):
        assert router.bias is not None
        router.bias[:2] += amount


# --- where they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SPARSE)
def test_routers_are_found_for_every_block(model_of: Any, family: str) -> None:
    model = model_of(family)
    routers = find_routers(model)
    assert len(routers) == len(find_experts(model)) > 0
    leaf = "router" if family == "gpt_oss" else "gate"
    assert all(router.name.endswith(f".mlp.{leaf}") for router in routers)
    assert all(router.module.weight.shape == (4, 64) for router in routers)
    assert all((router.bias is not None) == (family == "deepseek_v3") for router in routers)
    assert all(router.is_softmax == (family != "deepseek_v3") for router in routers)


def test_the_gate_of_a_shared_expert_is_no_router() -> None:
    config = Qwen2MoeConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip
    assert [router.name for router in find_routers(meta_model(config))] == [
        "model.layers.0.mlp.gate",
        "model.layers.1.mlp.gate",
    ]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "where"),
    [("minimax_m2", "model.layers.0.mlp.e_score_correction_bias"), ("lfm2_moe", "layers.1.feed_forward.expert_bias")],
)
def test_a_bias_beside_the_router_is_named(family: str, where: str) -> None:
    with pytest.raises(ModelError, match=where):
        check_routers(meta_model(config_of(family)), "bias")


@pytest.mark.parametrize(
    ("family", "mode", "said", "hint"),
    [
        ("deepseek_v3", "aux_loss", "those of deepseek_v3 are not among them", "router.mode=bias"),
        *((family, "bias", f"those of {family} have none", "router.mode=aux_loss") for family in SOFTMAX),
        *(("llama", mode, "no routed experts", "frozen") for mode in ("train", "aux_loss", "bias")),
    ],
)
def test_router_modes_that_cannot_work_are_refused_without_weights(
    tiny_model: Any, family: str, mode: Any, said: str, hint: str
) -> None:
    model = meta_model(locate(Base(model=str(tiny_model(family)))).config)
    with pytest.raises(ModelError, match=said) as refused:
        check_routers(model, mode)
    assert hint in refused.value.hint
    check_routers(model, "frozen")


def test_router_bias_in_16_bits_is_refused(model_of: Any) -> None:
    model = model_of("deepseek_v3").to(torch.bfloat16)
    with pytest.raises(ModelError, match="bfloat16"):
        open_routers(model, "bias")


# --- frozen and trained ----------------------------------------------------------------------------------------------


def train(model: nn.Module, steps: int = 4, balance: AuxiliaryLoss | None = None, weight: float = 0.0) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        if balance is not None:
            loss = loss + weight * balance.take()
        loss.backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("family", SPARSE)
def test_routers_that_are_frozen_stay_to_the_bit(model_of: Any, family: str) -> None:
    model = add_lora(model_of(family), LORA, Router())
    before = router_tensors(model)
    train(model)
    after = router_tensors(model)
    assert before and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", SPARSE)
def test_trained_routers_move_and_load_again(tiny_model: Any, tmp_path: Path, family: str) -> None:
    folder = tiny_model(family)
    base = locate(Base(model=str(folder)))
    model = add_lora(AutoModelForCausalLM.from_pretrained(folder), LORA, Router(mode="train"))
    before = router_tensors(model)
    numel = sum(router.module.weight.numel() for router in find_routers(model))
    router_line = next(line for line in audit(model) if line.part == "router")
    assert router_line.num_adapted == router_line.num_trained >= numel
    assert router_line.num_base == router_line.num_frozen == router_line.num_trained
    train(model)
    check_gradients(model)
    moved = {name for name, tensor in router_tensors(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "e_score" not in name}

    save_adapter(model, base, tmp_path / "adapter")
    with torch.no_grad():
        want = model(IDS).logits
        plain = load_plain_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
        torch.testing.assert_close(plain(IDS).logits, want, rtol=1e-5, atol=1e-5)
        ours = attach_adapter(load(Base(model=str(folder))), tmp_path / "adapter")
        torch.testing.assert_close(ours(IDS).logits, want, rtol=1e-4, atol=1e-4)


def test_opened_without_an_adapter_the_weights_themselves_are_trained(model_of: Any) -> None:
    model = model_of("deepseek_v3").requires_grad_(False)
    open_routers(model, "train")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"model.layers.1.mlp.gate.weight"}


# --- the auxiliary loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SOFTMAX)
@pytest.mark.parametrize("is_padded", [False, True])
def test_auxiliary_loss_of_one_layer_is_transformers(model_of: Any, family: str, is_padded: bool) -> None:
    model = model_of(family, num_hidden_layers=2 if family == "deepseek_v2" else 1).train()
    mask = torch.ones_like(IDS)
    if is_padded:
        mask[1:, 20:] = 0
    balance = AuxiliaryLoss(model)
    heard = []
    (router,) = find_routers(model)
    router.module.register_forward_hook(lambda module, args, output: heard.append(output))
    model(IDS, attention_mask=mask)
    got = balance.take(mask.reshape(-1) != 0)
    want = load_balancing_loss_func((heard[0][0],), 4, 2, mask)
    torch.testing.assert_close(got, want)
    assert got.requires_grad


def test_auxiliary_loss_by_hand() -> None:
    even = torch.zeros(4, 4)
    chosen = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert float(load_balancing_loss(even, chosen)) == pytest.approx(2.0)
    one_sided = torch.tensor([[50.0, 50.0, 0.0, 0.0]]).expand(4, 4)
    assert float(load_balancing_loss(one_sided, torch.tensor([[0, 1]]).expand(4, 2))) == pytest.approx(4.0)
    nothing = load_balancing_loss(even, chosen, torch.zeros(4, dtype=torch.bool))
    assert float(nothing) == 0.0


def test_auxiliary_loss_has_the_same_gradient_under_checkpointing(model_of: Any) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = model_of("qwen3_moe").train().requires_grad_(False)
        open_routers(model, "aux_loss")
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        balance = AuxiliaryLoss(model)
        model(IDS)
        balance.take().backward()
        gradients.append([router.module.weight.grad.clone() for router in find_routers(model)])
    assert all(g.abs().max() > 0 for g in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_auxiliary_loss_balances_a_skewed_model(model_of: Any, with_adapter: bool) -> None:
    model = model_of("qwen3_moe")
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.5  # a direction that all tokens have in common
        for router in find_routers(model):
            router.module.weight[0] += 0.2 * torch.sign(router.module.weight[0].sum())
    model.requires_grad_(False)
    if with_adapter:
        model = add_lora(model, LORA, Router(mode="aux_loss"))
    else:
        open_routers(model, "aux_loss")
    before = violation(model)
    balance = AuxiliaryLoss(model)
    train(model, steps=40, balance=balance, weight=3.0)
    balance.close()
    assert before > 0.5
    assert violation(model) < 0.5 * before


def test_auxiliary_loss_hears_nothing_outside_training(model_of: Any) -> None:
    model = model_of("qwen3_moe").eval()
    balance = AuxiliaryLoss(model)
    model(IDS)
    assert not balance._chosen
    model.train()
    with torch.no_grad():
        model(IDS)
    assert not balance._chosen


# --- the bias rule ---------------------------------------------------------------------------------------------------


def test_bias_rule_by_hand(model_of: Any) -> None:
    model = model_of("deepseek_v3")
    (router,) = find_routers(model)
    assert router.bias is not None
    router.bias.zero_()
    move_biases([router], torch.tensor([[10.0, 4.0, 6.0, 4.0]]), rate=0.01)
    torch.testing.assert_close(router.bias, torch.tensor([-0.01, 0.01, 0.0, 0.01]))
    move_biases([router], torch.zeros(1, 4), rate=0.01)
    torch.testing.assert_close(router.bias, torch.tensor([-0.01, 0.01, 0.0, 0.01]))


@pytest.mark.parametrize("with_adapter", [False, True])
def test_bias_rule_balances_a_skewed_model(model_of: Any, with_adapter: bool) -> None:
    model = model_of("deepseek_v3", num_hidden_layers=3)
    skew(model, 1.0)
    model.requires_grad_(False)
    if with_adapter:
        model = add_lora(model, LORA, Router(mode="bias"))
    else:
        open_routers(model, "bias")
    routers = find_routers(model)
    weights = [router.module.weight.clone() for router in routers]
    before = violation(model)
    monitor = RoutingMonitor(model)
    for _ in range(80):
        with torch.no_grad():
            model(IDS)
        move_biases(routers, monitor.take().load_LE, rate=0.03)
    assert before == pytest.approx(1.0)  # two of four experts take it all
    assert violation(model) < 0.35
    assert all(torch.equal(old, router.module.weight) for old, router in zip(weights, routers, strict=True))
    assert not any(router.module.weight.requires_grad for router in routers)


def test_moved_biases_load_again_with_plain_peft(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model("deepseek_v3")
    base = locate(Base(model=str(folder)))
    model = add_lora(AutoModelForCausalLM.from_pretrained(folder), LORA, Router(mode="bias"))
    line = next(line for line in audit(model) if line.part == "router")
    assert (line.num_base, line.num_adapted, line.num_trained, line.num_frozen) == (256, 0, 0, 256)
    train(model)
    check_gradients(model)
    routers = find_routers(model)
    for _ in range(5):
        move_biases(routers, torch.tensor([[9.0, 0.0, 0.0, 0.0]]), rate=0.2)
    save_adapter(model, base, tmp_path / "adapter")
    plain = load_plain_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(find_routers(plain)[0].bias, routers[0].bias)
    untouched = find_routers(AutoModelForCausalLM.from_pretrained(folder))[0]
    assert not torch.equal(untouched.bias, routers[0].bias)
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)
