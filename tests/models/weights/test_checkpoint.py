"""Weights read and written one tensor at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint, Spec, Stored, read_header, write_weights
from tests.conftest import TinyModel


class Doubled:
    """Every other tensor twice as large, the rest as it is."""

    def __init__(self, base: Checkpoint) -> None:
        self.base, self.shards, self.spec = base, base.shards, base.spec
        self.changed = set(list(base.names)[::2])

    def stored(self, name: str) -> Stored | None:
        return None if name in self.changed else self.base.stored(name)

    def read(self, name: str) -> Tensor:
        return self.base.read(name) * 2


def test_checkpoint_copy_is_the_same_byte_by_byte(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = tiny_model("qwen3_moe")
    (tmp_path / "copy").mkdir()
    write_weights(Checkpoint(folder), tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("num_threads", [1, 3])
def test_checkpoint_writes_computed_and_copied_tensors_in_place(
    tiny_model: TinyModel, tmp_path: Path, num_threads: int
) -> None:
    base = Checkpoint(tiny_model("deepseek_v3"))
    (tmp_path / "copy").mkdir()
    counted: list[int] = []
    write_weights(Doubled(base), tmp_path / "copy", counted.append, num_threads)
    written = load_file(tmp_path / "copy" / "model.safetensors")
    for number, name in enumerate(base.names):
        assert torch.equal(written[name], base.read(name) * (2 if number % 2 == 0 else 1)), name
    assert sum(counted) == base.num_bytes


def test_checkpoint_of_several_shards_gets_an_index(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"w{number}": torch.randn(3, 5)}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    index = {f"w{number}": f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "copy").mkdir()
    write_weights(Checkpoint(tmp_path), tmp_path / "copy")
    tree = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert tree["weight_map"] == index
    assert tree["metadata"]["total_size"] == 2 * 3 * 5 * 4


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_checkpoint_gives_every_number_format_back(dtype: str, tmp_path: Path) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(DTYPES[dtype])
    scalar = torch.tensor(1).to(DTYPES[dtype])
    save_file({"matrix": tensor, "scalar": scalar, "empty": tensor[:0]}, tmp_path / "model.safetensors")
    found = Checkpoint(tmp_path)
    assert found.spec("matrix") == Spec(dtype, (2, 3, 4)) == Spec.of(tensor)
    (tmp_path / "copy").mkdir()
    write_weights(found, tmp_path / "copy")
    again = Checkpoint(tmp_path / "copy")
    for name, want in {"matrix": tensor, "scalar": scalar, "empty": tensor[:0]}.items():
        for read in (found.read(name), again.read(name)):
            assert read.shape == want.shape
            assert read.tolist() == want.tolist()


@pytest.mark.parametrize("cut", [4, 60, -8])
def test_checkpoint_names_a_damaged_file(tiny_base: Path, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((tiny_base / "model.safetensors").read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"model\.safetensors: is damaged"):
        read_header(file)
    file.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: is missing"):
        read_header(file)
