"""A model that is read layer by layer: the logits of the whole one, and no layer left in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.export.weights.load_streamed import load_streamed
from dsr1_tune.export.weights.source import open_base
from dsr1_tune.models.load import load, locate

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
