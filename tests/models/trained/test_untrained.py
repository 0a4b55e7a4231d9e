"""Layers of an adapter that learned nothing are taken out, and what stays loads with plain PEFT as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter, Base
from dsr1_tune.models.load import locate
from dsr1_tune.models.trained.lora import add_lora, load_plain_adapter, save_adapter
from dsr1_tune.models.trained.untrained import take_out
from dsr1_tune.moe.anatomy import plain_name
from dsr1_tune.runs.update import Beginning

IDS = torch.randint(2, 258, (2, 19), generator=torch.Generator().manual_seed(0))
# A layer of which all others of the name stay, and one that PEFT reaches as a bare parameter.
IDLE = {"model.layers.0.self_attn.o_proj", "model.layers.1.mlp.shared_experts.up_proj"}


@pytest.mark.parametrize("init", ["kaiming", "pissa", "orthogonal"])
def test_what_learned_nothing_is_taken_out(tmp_path: Path, tiny_model: Any, init: Any) -> None:
    folder = tiny_model()
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = add_lora(base, Adapter(rank=2, init=init, ranks={"attention": 4})).eval()
    beginning = Beginning.of(model)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if ".lora_" in name and not any(idle in plain_name(name) for idle in IDLE):
            nn.init.normal_(weight, std=0.2)
    names = beginning.untrained(model)
    assert {plain_name(name) for name in names} == IDLE
    with torch.no_grad():
        want = model(IDS).logits
        take_out(model, names)
        torch.testing.assert_close(model(IDS).logits, want, rtol=1e-5, atol=1e-5)
        save_adapter(model, locate(Base(model=str(folder))), tmp_path / "adapter")
        again = load_plain_adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
        torch.testing.assert_close(again(IDS).logits, want, rtol=1e-3, atol=1e-3)
    keys = {plain_name(key) for key in get_peft_model_state_dict(again)}
    assert not any(key.startswith(idle) for key in keys for idle in IDLE)
    assert any(key.startswith("model.layers.1.self_attn.o_proj") for key in keys)


def test_a_trained_layer_that_went_on_from_another_run_is_not_taken_out(tiny_model: Any) -> None:
    """Its B is no zero when the run begins, and stays as it is where no gradient comes."""
    model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_model()), Adapter(rank=2))
    for name, weight in model.named_parameters():
        if ".lora_B" in name:
            nn.init.normal_(weight, std=0.2)
    assert Beginning.of(model).untrained(model) == []
