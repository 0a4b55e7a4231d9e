"""TRL's trainer made resumable: the order of its batches, and accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsr1_tune.config import Base
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.runs.trainer import trainer
from dsr1_tune.runs.trainer.trainer import LengthGrouped, save_trained, trained_state
from tests.lora_runs import ConfigureLora, FinishedRun, go, log_of


def test_accumulated_batches_train_as_one_batch(
    configure_lora: ConfigureLora, lora_run: FinishedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group, sizes = trainer.LengthGrouped, list[int]()

    def watched(lengths: list[int], batch_size: int, *rest: int) -> trainer.LengthGrouped:
        sizes.append(batch_size)
        return group(lengths, batch_size, *rest)

    monkeypatch.setattr(trainer, "LengthGrouped", watched)
    folder = go(configure_lora(tmp_path / "run", batch_size=2, gradient_accumulation_steps=4, samples=0))
    assert sizes == [8]
    losses, others = ([line["loss"] for line in log_of(path)] for path in (folder.path, lora_run.path))
    assert losses == pytest.approx(others, rel=1e-5)


def test_length_grouped_sampler_has_its_own_order_in_each_epoch() -> None:
    lengths = [10 * (number % 7) for number in range(280)]
    orders = []
    for epoch in (0, 1, 0):
        sampler = trainer.LengthGrouped(lengths, batch_size=8, seed=3)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(280))
    batches = [[lengths[number] for number in orders[1][start : start + 8]] for start in range(0, 280, 8)]
    # As they come, every batch holds lengths from 0 to 60. (The longest record goes first, whatever its batch.)
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 20


def test_length_grouped_sampler_puts_fillers_last() -> None:
    order = list(LengthGrouped([5] * 27, batch_size=8, seed=1, num_fillers=5))
    assert sorted(order[:27]) == list(range(27))
    assert order[27:] == [27, 28, 29, 30, 31]
    alone = LengthGrouped([5] * 27, batch_size=8, seed=1)
    assert list(alone) == order[:27]  # one process takes the same records in every step


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
