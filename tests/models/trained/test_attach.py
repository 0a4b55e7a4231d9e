"""A base with its adapter on it: every weight in its place, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained import attach
from tests.models.conftest import ADAPTER_IDS


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


@pytest.mark.parametrize("part", ["", "adapter"], ids=["run folder", "adapter folder"])
@torch.no_grad()
def test_adapter_goes_onto_its_base(adapter_run: tuple[Path, torch.Tensor], part: str) -> None:
    folder, want = adapter_run
    loaded = attach.load_with_adapter(folder / part)
    torch.testing.assert_close(loaded.model(ADAPTER_IDS).logits, want, rtol=1e-5, atol=1e-5)
    assert "over" in loaded.name
    assert not loaded.model.training


@torch.no_grad()
def test_load_with_adapter_without_one_is_the_base(tiny_model: Any) -> None:
    folder = tiny_model()
    assert attach.load_with_adapter(folder).name == str(folder)


def test_unfinished_run_has_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="is an unfinished run") as caught:
        attach.load_with_adapter(tmp_path)
    assert f"--resume {tmp_path}" in caught.value.hint


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"n_routed_experts": 8}, {"hidden_size": 128}], ids=str)
def test_adapter_of_another_base_is_refused(
    adapter_run: tuple[Path, torch.Tensor], tiny_model: Any, changes: dict[str, int]
) -> None:
    folder, _ = adapter_run
    other = tiny_model(name="other", **changes)
    edit_json(folder / "adapter/adapter_config.json", lambda tree: tree.update(base_model_name_or_path=str(other)))
    with pytest.raises(ModelError, match="does not go onto"):
        attach.load_with_adapter(folder)


def test_adapter_that_lacks_a_weight_is_refused(adapter_run: tuple[Path, torch.Tensor]) -> None:
    file = adapter_run[0] / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(sorted(weights)[0])
    save_file(weights, file)
    with pytest.raises(ModelError, match="1 weights do not match"):
        attach.load_with_adapter(adapter_run[0])


def test_damaged_adapter_is_refused(adapter_run: tuple[Path, torch.Tensor]) -> None:
    file = adapter_run[0] / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="does not go onto"):
        attach.load_with_adapter(adapter_run[0])
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        attach.load_with_adapter(adapter_run[0])
    (adapter_run[0] / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="does not say which base"):
        attach.load_with_adapter(adapter_run[0])
