"""Every option of the adapter does what it says, and what it gives loads with plain PEFT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper
from pydantic import ValidationError
from torch import nn

from dsr1_tune.config import GROUPS, Adapter, Base, Group, LoraRun, QloraRun, TuneRun
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import locate
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.lora import (
    audit,
    check_adapter,
    check_gradients,
)
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.moe.expert_lora import use_grouped_products
from tests.models.trained.conftest import Made, linear_layers, logits_of, lora_layers, train

MIXTURES = ("deepseek_v3", "qwen3_moe")


# --- ranks and scales ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", MIXTURES)
def test_ranks_and_alphas_by_group(tiny_model: Any, tmp_path: Path, family: str, rslora: bool) -> None:
    has: tuple[Group, ...] = GROUPS if family == "deepseek_v3" else ("attention", "routed_experts")
    ranks = {"attention": 6, "shared_experts": 3, "routed_experts": 2}
    alphas = {"attention": 5.0, "dense_ffn": 7.0, "routed_experts": 9.0}
    adapter = Adapter(
        rank=4,
        alpha=16,
        groups=has,
        ranks={group: rank for group, rank in ranks.items() if group in has},
        alphas={group: alpha for group, alpha in alphas.items() if group in has},
        rslora=rslora,
    )
    made = Made(tiny_model(family), adapter)
    for group, layers in lora_layers(made.model).items():
        rank, alpha = ranks.get(group, 4), alphas.get(group, 16.0)
        for layer in layers:
            fold = getattr(layer, "num_experts", 1) if isinstance(layer, ParamWrapper) else 1
            assert layer.lora_A["default"].weight.shape[0] == rank * fold
            assert layer.lora_B["default"].weight.shape[1] == rank * fold
            assert layer.scaling["default"] == pytest.approx(alpha / (math.sqrt(rank) if rslora else rank))
    train(made.model)
    plain = made.reloaded(tmp_path / "adapter")
    assert {layer.r["default"] for layer in lora_layers(plain)["attention"]} == {6}
    torch.testing.assert_close(logits_of(plain), logits_of(made.model), rtol=1e-5, atol=1e-5)
    assert (logits_of(plain) - made.untrained).norm() > 0.1 * made.untrained.norm()


def test_the_products_equal_pefts_own_at_any_rank(tiny_model: Any, tmp_path: Path) -> None:
    adapter = Adapter(
        rank=4, ranks={"routed_experts": 3, "shared_experts": 5}, alphas={"routed_experts": 2}, rslora=True
    )
    made = Made(tiny_model("deepseek_v3"), adapter)
    train(made.model)
    plain = made.reloaded(tmp_path / "adapter")
    want = logits_of(plain)
    assert use_grouped_products(plain)
    torch.testing.assert_close(logits_of(plain), want, rtol=1e-5, atol=1e-5)


# --- DoRA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "groups"),
    [("llama", GROUPS), ("deepseek_v3", ("attention",)), ("qwen3_moe", ("attention",))],
)
def test_dora_trains_magnitudes(tiny_model: Any, tmp_path: Path, family: str, groups: tuple[Group, ...]) -> None:
    made = Made(tiny_model(family), Adapter(rank=4, groups=groups, dora=True))
    magnitudes = {name: p for name, p in made.model.named_parameters() if "lora_magnitude_vector" in name}
    assert len(magnitudes) == len(linear_layers(made.model)) > 0
    before = {name: magnitude.detach().clone() for name, magnitude in magnitudes.items()}
    torch.testing.assert_close(logits_of(made.model), made.untrained, rtol=1e-4, atol=1e-4)
    counted = {line.part: line.num_trained for line in audit(made.model)}
    part_of = Anatomy(made.model)
    attention = [p for name, p in made.model.named_parameters() if p.requires_grad and part_of(name) == "attention"]
    assert counted["attention"] == sum(p.numel() for p in attention)
    train(made.model)
    check_gradients(made.model)
    assert not any(torch.equal(before[name], magnitude) for name, magnitude in magnitudes.items())
    plain = made.reloaded(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(plain), logits_of(made.model), rtol=1e-5, atol=1e-5)
    assert (logits_of(plain) - made.untrained).norm() > 0.05 * made.untrained.norm()


def test_dora_that_would_not_reach_everything_is_refused_without_weights(tiny_model: Any) -> None:
    model = meta_model(locate(Base(model=str(tiny_model("deepseek_v3")))).config)
    with pytest.raises(ModelError, match="dense_ffn, shared_experts, routed_experts") as refused:
        check_adapter(model, Adapter(dora=True))
    assert refused.value.hint == "--set adapter.groups=[attention]"
    with pytest.raises(ModelError, match="shared_experts"):
        check_adapter(model, Adapter(dora=True, groups=("attention", "shared_experts")))
    check_adapter(model, Adapter(dora=True, groups=("attention",)))


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MIXTURES)
def test_dropout_is_on_every_linear_layer_and_only_while_training(tiny_model: Any, tmp_path: Path, family: str) -> None:
    made = Made(tiny_model(family), Adapter(rank=4, dropout=0.5))
    train(made.model)
    for layer in linear_layers(made.model):
        x = torch.randn(5, layer.in_features)
        layer.train()
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))
    others = [layer for layer in lora_layers(made.model)["routed_experts"] if layer not in linear_layers(made.model)]
    assert others
    assert all(isinstance(layer.lora_dropout["default"], nn.Identity) for layer in others)
    plain = made.reloaded(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(plain), logits_of(made.model), rtol=1e-5, atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean(tiny_model: Any) -> None:
    made = Made(tiny_model("deepseek_v3"), Adapter(rank=4, dropout=0.25))
    layer = lora_layers(made.model)["shared_experts"][0]
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(1, layer.in_features)
    layer.eval()
    exact = layer(x)
    layer.train()
    drawn = torch.stack([layer(x) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), exact, rtol=0.1, atol=0.05 * float(drawn.detach().std()) + 0.1)
    assert float(drawn.std(0).mean()) > 0


# --- how the factors begin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (Adapter(rank=3, init="orthogonal"), "even"),
        (Adapter(rank=4, ranks={"attention": 5}, init="orthogonal"), "attention has 5"),
        (Adapter(rank=65, init="pissa"), "65"),
        (Adapter(ranks={"shared_experts": 80}, init="olora"), "80"),
    ],
)
def test_ranks_that_an_init_cannot_have_are_refused(tiny_model: Any, adapter: Adapter, said: str) -> None:
    model = meta_model(locate(Base(model=str(tiny_model("deepseek_v3")))).config)
    with pytest.raises(ModelError, match=said):
        check_adapter(model, adapter)


# --- knobs that cannot work together ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (QloraRun, {"adapter": {"dora": True, "groups": ["attention"]}}, "4 bits"),
        (QloraRun, {"adapter": {"init": "pissa"}}, "4 bits"),
        (LoraRun, {"base": {"dtype": "float16"}, "router": {"mode": "train"}}, "float16"),
        (LoraRun, {"base": {"dtype": "float16"}, "router": {"mode": "aux_loss"}}, "float16"),
        (LoraRun, {"schedule": {"optimizer": "adamw_8bit"}, "parallel": {"strategy": "fsdp2"}}, "whole weights"),
        (LoraRun, {"schedule": {"optimizer": "adafactor"}, "parallel": {"strategy": "fsdp2"}}, "whole weights"),
        (LoraRun, {"parallel": {"strategy": "zero3"}}, "fsdp2 shards all weights, experts"),
        (LoraRun, {"adapter": {"dora": True, "init": "olora"}}, "choose one"),
        (LoraRun, {"adapter": {"dropout": 0.1, "groups": ["routed_experts"]}}, "linear layers"),
        (LoraRun, {"adapter": {"ranks": {"attention": 2}, "groups": ["routed_experts"]}}, "leaves out"),
    ],
)
def test_settings_that_exclude_each_other(kind: type[TuneRun], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        kind.model_validate(given)
