"""Checkpoints of full fine-tuning hold what is trained, by its names in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsr1_tune.config import Base
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.runs.trainer.checkpoint_weights import save_trained, trained_state


def test_trained_state_holds_trained_weights_and_balancing_biases_alone(tiny_base: Path, tmp_path: Path) -> None:
    model: Any = load(Base(model=str(tiny_base))).model
    enable_full_training(model, ("routed_experts",))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    state = trained_state(model)
    assert trained and trained <= set(state)
    biases = {name for name in state if name.endswith("e_score_correction_bias")}
    assert biases and set(state) - trained - biases <= {name for name, _ in model.named_buffers()}
    save_trained(model, None, tmp_path / "checkpoint-1")
    saved = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert saved.keys() == state.keys() and all(torch.equal(saved[name], state[name]) for name in saved)


def test_trained_state_has_tied_weights_once(tiny_model: Any) -> None:
    model: Any = load(Base(model=str(tiny_model("llama")))).model
    enable_full_training(model, ())
    state = trained_state(model)
    assert "model.embed_tokens.weight" in state and "lm_head.weight" not in state
