"""Checkpoints of PPO: the trained weights, the optimizer's state, and the current KL coefficient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dsr1_tune.atomic import atomic_write
from dsr1_tune.errors import RunError

WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "ppo_state.json"


def save_state(
    folder: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scheduler: Any, beta: float
) -> None:
    """Write all that the next update depends on; the seeds of its answers follow from the update's number."""
    save_file({name: weight.detach().contiguous() for name, weight in trained.items()}, folder / WEIGHTS)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, folder / OPTIMIZER)
    with atomic_write(folder / STATE) as file:
        json.dump({"beta": beta}, file)


def load_state(
    folder: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, scheduler: Any
) -> float:
    """Load a checkpoint's weights and states; returns the KL coefficient. Raises RunError where it does not fit."""
    try:
        weights = load_file(folder / WEIGHTS)
        states = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        beta = float(json.loads((folder / STATE).read_text())["beta"])
    except Exception as error:  # unpicklers fail in many ways
        raise RunError(f"{folder}: cannot be read: {error}", hint="remove it: an earlier one is gone on from") from None
    if weights.keys() != trained.keys():
        raise RunError(f"{folder}: holds other weights than this run trains", hint="start a new run")
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])
    optimizer.load_state_dict(states["optimizer"])
    scheduler.load_state_dict(states["scheduler"])
    return beta
