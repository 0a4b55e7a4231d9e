"""Weights that are converted while they are read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dsr1_tune.models.weights import converted
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec, write_weights


def test_converted_weight_is_read_and_made_once(tiny_base: Path, tmp_path: Path) -> None:
    class Counted(Checkpoint):
        reads: list[str] = []

        def read(self, name: str) -> Tensor:
            self.reads.append(name)
            return super().read(name)

    weights = Counted(tiny_base)
    chosen = [name for name in weights.names if "experts." in name and name.endswith("weight")]
    view = converted.Converted(
        weights,
        chosen,
        lambda name, spec: {name: Spec("I8", spec.shape), f"{name}.half": Spec("F16", spec.shape)},
        lambda name, weight: {name: weight.to(torch.int8), f"{name}.half": weight.half()},
    )
    write_weights(view, tmp_path)
    assert sorted(weights.reads) == sorted(chosen)
    stored, exact = load_file(tmp_path / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert all(torch.equal(stored[f"{name}.half"], exact[name].half()) for name in chosen)
    assert stored.keys() == exact.keys() | {f"{name}.half" for name in chosen}
