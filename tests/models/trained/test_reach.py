"""Layers from which no update would reach the output get none and are named; all others get one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsr1_tune.config import GROUPS, Adapter
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.lora import add_lora, not_adapted
from dsr1_tune.models.trained.reach import NO_GRADIENT, READ_PAST, RENAMED, as_lines
from dsr1_tune.moe.anatomy import is_plain_linear
from tests.families import config_of

IDS = torch.randint(2, 258, (2, 160), generator=torch.Generator().manual_seed(0))
LEFT_OUT = {
    "deepseek_v32": {"indexer.wq_b": NO_GRADIENT, "indexer.wk": NO_GRADIENT, "indexer.weights_proj": NO_GRADIENT},
    "granitemoehybrid": {"mamba.out_proj": READ_PAST},
    "jamba": {"mamba.dt_proj": READ_PAST},
    "laguna": {f"mlp.shared_experts.{name}_proj": RENAMED for name in ("gate", "up", "down")},
    "nemotron_h": {"mixer.out_proj": READ_PAST},
    "lfm2_moe": {},
}


def left_out_of(model: Any) -> dict[str, str]:
    return {re.sub(r"^.*?\.\d+\.(self_attn\.)?", "", name): why for name, why in not_adapted(model, GROUPS).items()}


@pytest.mark.parametrize("family", LEFT_OUT)
def test_layers_that_nothing_reaches_are_found_without_weights(family: str) -> None:
    assert left_out_of(meta_model(config_of(family))) == LEFT_OUT[family]


def test_what_computes_in_its_own_way_is_named() -> None:
    found = as_lines(not_adapted(meta_model(config_of("deepseek_v4")), GROUPS))
    assert "model.layers.*.self_attn.o_a_proj (2): DeepseekV4GroupedLinear computes in its own way, left out" in found
    assert len(found) == 5  # and four layers of the indexer


@pytest.mark.parametrize("family", ["deepseek_v32", "lfm2_moe", "nemotron_h"])
def test_every_update_that_is_put_on_changes_the_output(family: str) -> None:
    """The other way round: of each layer that is adapted alone, an update is seen in the logits."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config_of(family)).eval()
    without = not_adapted(base, GROUPS)
    linears = [name for name, module in base.named_modules() if is_plain_linear(module)]
    model = add_lora(base, Adapter()).eval()
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_B")}
    adapted = {name.removeprefix("base_model.model.") for name in layers}
    assert not adapted & set(without)
    assert {name for name in linears if "lm_head" not in name} - adapted <= set(without) | routers(linears)
    with torch.no_grad():
        before = model(IDS).logits
        for name, layer in layers.items():
            lora_b = layer.lora_B["default"].weight
            lora_b.normal_(std=5)
            assert not torch.equal(model(IDS).logits, before), name
            lora_b.zero_()


def routers(names: list[str]) -> set[str]:
    return {name for name in names if name.endswith((".gate", "shared_expert_gate"))}
