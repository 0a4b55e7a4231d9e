"""Which experts a run's tokens went to, layer by expert: before, while and after training, in one file of arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from dsr1_tune.atomic import atomic_write
from dsr1_tune.moe.monitor import Routing

FILE_NAME = "experts_load.npz"
_STAGES = ("before", "training", "after")


@dataclass(frozen=True)
class ExpertTables:
    """The held-out probe's routing before and after training, and all that was trained on."""

    before: Routing | None = None
    training: Routing | None = None
    after: Routing | None = None

    @classmethod
    def read(cls, folder: Path) -> ExpertTables:
        """What the file in `folder` holds; nothing where there is none that can be read."""
        try:
            with np.load(folder / FILE_NAME, allow_pickle=False) as arrays:
                layers, num_chosen = tuple(arrays["layers"].tolist()), int(arrays["num_chosen"])
                stages = {}
                for stage in (stage for stage in _STAGES if f"{stage}_load" in arrays):
                    load_LE, weight_LE = (torch.from_numpy(arrays[f"{stage}_{what}"]) for what in ("load", "weight"))
                    stages[stage] = Routing(layers, load_LE, weight_LE, num_chosen)
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return cls()
        return cls(**stages)

    def write(self, folder: Path) -> None:
        """Write the file: `layers` (L), and `<stage>_load`, `<stage>_weight` (L, E) for each stage that there is."""
        found = {stage: routing for stage in _STAGES if (routing := getattr(self, stage)) is not None}
        if not found or not any(routing.layers for routing in found.values()):
            return
        one = next(iter(found.values()))
        arrays: dict[str, Any] = {"layers": np.array(one.layers), "num_chosen": np.array(one.num_chosen)}
        for stage, routing in found.items():
            arrays |= {f"{stage}_load": routing.load_LE.numpy(), f"{stage}_weight": routing.weight_LE.numpy()}
        with atomic_write(folder / FILE_NAME, binary=True) as file:
            np.savez_compressed(file, **arrays)


def note_routing(folder: Path, **stages: Routing) -> None:
    """Put the routing of a stage (before, training or after) into the file in `folder`."""
    replace(ExpertTables.read(folder), **stages).write(folder)
