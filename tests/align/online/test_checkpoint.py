"""PPO's checkpoints come back as they were saved, and damaged ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsr1_tune.align.online.checkpoint import load_state, save_state
from dsr1_tune.errors import RunError


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "ppo_state.json"])
def test_load_state_refuses_a_damaged_checkpoint(tmp_path: Path, name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trained = dict(layer.named_parameters())
    save_state(tmp_path, trained, optimizer, scheduler, 0.3)
    assert load_state(tmp_path, trained, optimizer, scheduler) == 0.3
    (tmp_path / name).write_bytes(b"rubbish")
    with pytest.raises(RunError, match="cannot be read"):
        load_state(tmp_path, trained, optimizer, scheduler)
