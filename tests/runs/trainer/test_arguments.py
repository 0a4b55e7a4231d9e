"""Our schedule as TRL's arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trl import SFTConfig

from dsr1_tune.config import LoraRun, Schedule
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.arguments import to_arguments


def test_arguments_train_on_one_gpu_per_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(SFTConfig, "n_gpu", property(lambda self: self.__dict__.get("_n_gpu") or 4))
    monkeypatch.setattr(SFTConfig, "__post_init__", lambda self: None)
    arguments = to_arguments(LoraRun(schedule=Schedule(batch_size=3)), RunFolder(tmp_path), torch.float32)
    assert arguments.n_gpu == 1


def test_arguments_take_over_the_schedule(tmp_path: Path) -> None:
    schedule = Schedule(
        learning_rate=3e-4, batch_size=3, gradient_accumulation_steps=2, max_steps=7, warmup_share=0.2, seed=5
    )
    arguments = to_arguments(LoraRun(schedule=schedule), RunFolder(tmp_path), torch.float32)
    assert (arguments.learning_rate, arguments.max_steps, arguments.seed) == (3e-4, 7, 5)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (3, 2)
    assert arguments.lr_scheduler_type == "cosine" and arguments.get_warmup_steps(10) == 2
    assert arguments.activation_checkpointing is True and not arguments.bf16
