"""Packing is refused for models that mix examples, and others are given masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.runs.trainer.packing_check import largest_difference, use_packing
from tests.runs.trainer.conftest import FAMILIES, load


def tiny_mamba() -> Any:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    return Mamba2ForCausalLM(
        Mamba2Config(
            vocab_size=258, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=16, n_groups=1
        )
    )


def tiny_hybrid() -> Any:
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        intermediate_size=32,
    )
    return Qwen3NextForCausalLM(config)


def tiny_bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=258, hidden_size=32, n_layer=2, n_head=2))


@pytest.mark.parametrize("make", [tiny_mamba, tiny_hybrid, tiny_bloom])
def test_packing_is_refused_for_a_model_that_mixes_examples(make: Any) -> None:
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.train()
    with pytest.raises(ModelError, match="packing"):
        use_packing(model)
    assert model.training
    assert not model.base_model._forward_pre_hooks


def test_packing_gives_masks_to_a_model_that_ignores_positions(tiny_model: Any) -> None:
    model = load(tiny_model("gpt_oss")).eval()
    before = largest_difference(model)
    use_packing(model)
    assert largest_difference(model) < 1e-5
    if before > 0.1:  # else transformers has mended it, and no mask is needed
        assert model.base_model._forward_pre_hooks


def test_packing_is_refused_where_even_masks_do_not_help(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    model = load(tiny_model("deepseek_v3")).eval()
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    assert largest_difference(model) > 0.1
    with pytest.raises(ModelError, match="see those before it"):
        use_packing(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_check_tolerates_rounding_to_16_bits(tiny_model: Any, family: str) -> None:
    model = load(tiny_model(family), dtype=torch.bfloat16)
    use_packing(model)
    assert largest_difference(model) < 0.05
    if family != "gpt_oss":
        assert not model.base_model._forward_pre_hooks
