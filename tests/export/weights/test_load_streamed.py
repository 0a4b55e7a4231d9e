"""A model that is read layer by layer: the logits of the whole one, and no layer left in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dsr1_tune.config import Base
from dsr1_tune.export.weights.load_streamed import load_streamed
from dsr1_tune.export.weights.source import open_base
from dsr1_tune.models.load import load, locate
from dsr1_tune.models.trained.attach import attach_adapter

IDS = torch.arange(20).view(1, -1)


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "llama"])
@torch.no_grad()
def test_load_streamed_gives_the_logits_of_the_whole_model(tiny_model: Any, family: str) -> None:
    folder = tiny_model(family)
    base = open_base(locate(Base(model=str(folder), dtype="float32"), is_loaded=False))
    model = load_streamed(base.located, base.plain.read, base.layout).model
    for _ in range(2):  # layers that were let go are read again
        got = model(IDS).logits
        assert torch.allclose(got, load(Base(model=str(folder), dtype="float32")).model(IDS).logits, atol=1e-5)
    held = [weight for weight in model.parameters() if weight.untyped_storage().nbytes() > weight.itemsize]
    assert held == []


@pytest.mark.parametrize("trained", ["lm_head", "norm"])
@torch.no_grad()
def test_load_streamed_keeps_modules_that_an_adapter_saves_whole(tiny_model: Any, tmp_path: Path, trained: str) -> None:
    folder = tiny_model("deepseek_v3", tie_word_embeddings=False)
    options = LoraConfig(target_modules=["o_proj"], modules_to_save=[trained], init_lora_weights=False)
    adapted = get_peft_model(load(Base(model=str(folder), dtype="float32")).model, options)
    for name, weight in adapted.named_parameters():
        if "modules_to_save" in name:
            weight.add_(0.5 * torch.randn_like(weight))
    adapted.save_pretrained(tmp_path)
    base = open_base(locate(Base(model=str(folder), dtype="float32"), is_loaded=False))
    streamed = attach_adapter(load_streamed(base.located, base.plain.read, base.layout), tmp_path)
    for _ in range(2):
        assert torch.allclose(streamed(IDS).logits, adapted(IDS).logits, atol=1e-4)
