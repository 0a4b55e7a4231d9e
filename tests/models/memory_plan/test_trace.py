"""What a step holds, traced on tensors that are none, beside real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import meta
from dsr1_tune.models.load import load
from dsr1_tune.models.memory_plan import trace as memory_trace
from dsr1_tune.models.memory_plan.base import describe
from dsr1_tune.models.memory_plan.trace import trace
from dsr1_tune.moe.quantized_experts import finish_nf4, reserve_nf4
from dsr1_tune.quant.nf4 import scale_map
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
@pytest.mark.parametrize("dense", [1, 3])
def test_trace_takes_further_layers_to_be_like_the_traced(
    monkeypatch: pytest.MonkeyPatch, prepare: Any, dense: int
) -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=9, first_k_dense_replace=dense)
    some = trace(config, prepare, torch.float32, 2, 64)
    monkeypatch.setattr(memory_trace, "MAX_TRACED_LAYERS", 9)
    every = trace(config, prepare, torch.float32, 2, 64)
    # Dense layers but the first are taken for layers of experts, so what is left beside gradients is held up.
    assert some.peak - some.gradients == pytest.approx(every.peak - every.gradients, rel=0.03 * dense)
    assert some.small - some.small_gradients == pytest.approx(every.small - every.small_gradients, rel=0.05 * dense)


def test_trace_of_checkpointing_and_smaller_batches_is_less() -> None:
    config = tiny_config("qwen3_moe", num_hidden_layers=4)
    whole = trace(config, with_lora, torch.float32, 4, 128)
    assert trace(config, with_lora, torch.float32, 4, 128, is_checkpointed=True).peak < 0.7 * whole.peak
    assert trace(config, with_lora, torch.float32, 2, 128).peak == pytest.approx(whole.peak / 2, rel=0.15)


def test_attention_on_a_gpu_keeps_no_scores() -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=2, qk_nope_head_dim=32, v_head_dim=16)  # 48 wide against 16

    def peak(tokens: int, is_on_gpu: bool) -> int:
        return trace(config, own, torch.bfloat16, 1, tokens, is_on_gpu=is_on_gpu).peak

    scores = 2 * 4 * 1024 * 1024  # bytes of a layer's, of 4 heads
    assert peak(1024, False) - peak(1024, True) > 2 * scores
    assert peak(1024, True) < 2.5 * peak(512, True)
    assert peak(1024, False) > 3 * peak(512, False)
    fused = peak(1024, True)
    config._attn_implementation = "eager"
    assert peak(1024, True) - fused > 2 * scores


def test_fused_attention_that_is_imagined_gives_gradients_of_the_right_shapes() -> None:
    q, k, v = (torch.zeros(1, heads, 8, width, requires_grad=True) for heads, width in ((4, 24), (2, 24), (2, 16)))
    out = memory_trace._attend(q, k, v, enable_gqa=True)
    assert out.shape == (1, 4, 8, 16)
    out.sum().backward()
    assert [one.grad.shape for one in (q, k, v) if one.grad is not None] == [q.shape, k.shape, v.shape]


def test_experts_on_a_gpu_have_no_padding_and_dequantize_a_portion() -> None:
    def in_nf4(model: Any) -> Any:
        reserve_nf4(model)
        finish_nf4(model)
        return with_lora(model)

    scale_map(torch.device("cpu"))
    config = tiny_config("qwen3_moe", num_experts=64, num_hidden_layers=2)
    here, there = (trace(config, in_nf4, torch.bfloat16, 1, 48, is_on_gpu=is_on_gpu) for is_on_gpu in (False, True))
    all_of_a_layer = 64 * 2 * 64 * 64 * 2
    assert there.largest >= all_of_a_layer * 40 // 64 > here.largest
    assert functional.scaled_dot_product_attention is not memory_trace._attend


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
