"""What a step holds, traced on tensors that are none, beside real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import meta
from dsr1_tune.models.load import load
from dsr1_tune.models.memory_plan import trace as memory_trace
from dsr1_tune.models.memory_plan.base import describe
from dsr1_tune.models.memory_plan.trace import trace
from tests.conftest import TinyModel, tiny_config
from tests.families import config_of
from tests.models.memory_plan.conftest import own, with_lora


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_traced_step_keeps_what_a_real_one_keeps(tiny_model: TinyModel, family: str, is_checkpointed: bool) -> None:
    from trl.trainer.utils import add_fused_lm_head

    folder = tiny_model(family)
    imagined = trace(
        describe(Base(model=str(folder))).config, with_lora, torch.float32, 4, 96, is_checkpointed=is_checkpointed
    )
    model = with_lora(load(Base(model=str(folder), dtype="float32")).model).train()
    if is_checkpointed:
        model.activation_checkpointing_enable()
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    ids_BT = torch.randint(0, 258, (4, 96))
    with memory_trace._Alive(model, 258) as alive:
        memory_trace._supervised(model, ids_BT)
    assert imagined.peak == pytest.approx(alive.peak, rel=0.1)


@pytest.mark.parametrize("prepare", [with_lora, own])
def test_trace_takes_further_layers_to_be_like_the_traced(monkeypatch: pytest.MonkeyPatch, prepare: Any) -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=9)
    some = trace(config, prepare, torch.float32, 2, 64)
    monkeypatch.setattr(memory_trace, "MAX_TRACED_LAYERS", 9)
    every = trace(config, prepare, torch.float32, 2, 64)
    assert some.peak == pytest.approx(every.peak, rel=0.03)
    assert some.small == pytest.approx(every.small, rel=0.05)


def test_trace_of_checkpointing_and_smaller_batches_is_less() -> None:
    config = tiny_config("qwen3_moe", num_hidden_layers=4)
    whole = trace(config, with_lora, torch.float32, 4, 128)
    assert trace(config, with_lora, torch.float32, 4, 128, is_checkpointed=True).peak < 0.7 * whole.peak
    assert trace(config, with_lora, torch.float32, 2, 128).peak == pytest.approx(whole.peak / 2, rel=0.15)


def test_what_stands_for_a_layer_that_asks_for_numbers_keeps_what_that_layer_keeps() -> None:
    from trl.trainer.utils import add_fused_lm_head

    config = config_of("qwen4_exp_text", dtype=torch.float32)
    imagined = trace(config, with_lora, torch.float32, 2, 24)
    model = with_lora(AutoModelForCausalLM.from_config(config)).train()
    model.config.use_cache = False
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    with memory_trace._Alive(model, 258) as alive:
        memory_trace._supervised(model, torch.randint(0, 258, (2, 24)))
    assert imagined.peak == pytest.approx(alive.peak, rel=0.02)


def test_a_family_that_cannot_be_imagined_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "_ASKS_FOR_NUMBERS", "")
    with pytest.raises(ModelError, match=r"^qwen4_exp_text: what it takes cannot be planned"):
        trace(config_of("qwen4_exp_text"), own, torch.float32, 2, 16)
