"""Weights of which some become several tensors while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.models.weights import converted
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec, write_weights
from dsr1_tune.models.weights.converted import Converted


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    (tmp_path / "base").mkdir()
    tensors = {"a.weight": torch.arange(15.0).view(3, 5), "b.weight": torch.ones(2, 4), "norm": torch.ones(3)}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    return Checkpoint(tmp_path / "base")


def specs(name: str, spec: Spec) -> dict[str, Spec]:
    return {f"{name}.sign": Spec("I8", spec.shape), f"{name}.rows": Spec("F32", spec.shape[:1]),
            f"{name}.count": Spec("U8", ())}  # fmt: skip


def make(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.sign": weight.sign().to(torch.int8),
        f"{name}.rows": weight.sum(1),
        f"{name}.count": torch.tensor(weight.numel(), dtype=torch.uint8),
    }


def test_converted_weights_are_written_in_place_of_those_they_are_made_of(base: Checkpoint, tmp_path: Path) -> None:
    made: list[str] = []
    weights = Converted(base, ["a.weight"], specs, lambda name, weight: made.append(name) or make(name, weight))
    (tmp_path / "out").mkdir()
    write_weights(weights, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == {"a.weight.sign", "a.weight.rows", "a.weight.count", "b.weight", "norm"}
    assert torch.equal(written["a.weight.rows"], torch.arange(15.0).view(3, 5).sum(1))
    assert torch.equal(written["b.weight"], torch.ones(2, 4)) and made
    assert weights.stored("norm") is not None and weights.stored("a.weight.sign") is None
    with pytest.raises(KeyError):
        weights.spec("c.weight")


def test_converted_tensors_stand_at_multiples_of_their_numbers_size(base: Checkpoint) -> None:
    weights = Converted(base, ["a.weight", "b.weight"], specs, make)
    place = 0
    for name in weights.shards["model.safetensors"]:
        spec = weights.spec(name)
        assert place % {"I8": 1, "U8": 1, "F32": 4}[spec.dtype] == 0, name
        place += spec.num_bytes


def test_converted_weight_may_be_read_more_exactly_than_it_is_stored(base: Checkpoint) -> None:
    weights = Converted(base, ["b.weight"], specs, make, read=lambda name: base.read(name) * 3)
    assert weights.read("b.weight.rows").tolist() == [12.0, 12.0]


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
