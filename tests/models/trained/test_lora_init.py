"""How LoRA A and B begin, and that what they become loads with plain PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Adapter
from dsr1_tune.models.trained.lora import (
    check_gradients,
)
from tests.models.trained.conftest import Made, linear_layers, logits_of, lora_layers, train

MIXTURES = ("deepseek_v3", "qwen3_moe")


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal", "pissa", "olora"])
@pytest.mark.parametrize("family", MIXTURES)
def test_inits_begin_at_the_base_and_reload_as_trained(tiny_model: Any, tmp_path: Path, family: str, init: Any) -> None:
    made = Made(tiny_model(family), Adapter(rank=4, init=init))
    torch.testing.assert_close(logits_of(made.model), made.untrained, rtol=1e-4, atol=1e-4)
    for layer in linear_layers(made.model):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert bool(b.any()) == (init in ("orthogonal", "pissa", "olora"))
        assert a.dtype == b.dtype == torch.float32
        if init == "orthogonal":
            assert float((b @ a).norm()) < 1e-5 * float(b.norm() * a.norm())
    experts = [x for x in lora_layers(made.model)["routed_experts"] if x not in linear_layers(made.model)]
    assert not any(layer.lora_B["default"].weight.any() for layer in experts)
    weights = {name: p.detach().clone() for name, p in made.fresh().named_parameters()}
    train(made.model)
    check_gradients(made.model)
    for name, parameter in made.model.get_base_model().named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, weights[name.replace("base_layer.", "")])
    plain = made.reloaded(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(plain), logits_of(made.model), rtol=1e-5, atol=1e-5)
    assert (logits_of(plain) - made.untrained).norm() > 0.1 * made.untrained.norm()


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_and_olora_reload_with_ranks_of_their_own(tiny_model: Any, tmp_path: Path, rslora: bool) -> None:
    adapter = Adapter(
        rank=4, ranks={"attention": 6, "routed_experts": 3}, alphas={"shared_experts": 3}, init="pissa", rslora=rslora
    )
    made = Made(tiny_model("deepseek_v3"), adapter)
    train(made.model)
    plain = made.reloaded(tmp_path / "adapter")
    assert {layer.r["default"] for layer in lora_layers(plain)["attention"]} == {12}
    assert {layer.r["default"] for layer in lora_layers(plain)["routed_experts"]} == {3}
    torch.testing.assert_close(logits_of(plain), logits_of(made.model), rtol=1e-5, atol=1e-5)
    assert {layer.r["default"] for layer in lora_layers(made.model)["attention"]} == {6}


def test_pissa_begins_with_the_principal_part(tiny_model: Any) -> None:
    """And what is trained is that part: the rest of the weight is W - s·B·A, of which it takes the largest values."""
    made = Made(tiny_model("deepseek_v3"), Adapter(rank=4, init="pissa", groups=("attention",)))
    layer = linear_layers(made.model)[0]
    weight = layer.get_base_layer().weight.detach()
    part = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    left = torch.linalg.svdvals(weight - part.detach())
    torch.testing.assert_close(left[: len(left) - 4], torch.linalg.svdvals(weight)[4:], rtol=1e-4, atol=1e-4)


def test_a_disabled_adapter_is_the_base_whatever_the_init(tiny_model: Any) -> None:
    made = Made(tiny_model("deepseek_v3"), Adapter(rank=4, init="olora"))
    train(made.model)
    with made.model.disable_adapter():
        torch.testing.assert_close(logits_of(made.model), made.untrained, rtol=1e-5, atol=1e-5)
