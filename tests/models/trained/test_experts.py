"""Trained experts as files: what was moved of a base comes back onto it, and onto no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load, locate
from dsr1_tune.models.ref import Experts, ModelRef
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.experts import ExpertsConfig, attach_experts, save_experts
from dsr1_tune.moe.selected_experts import train_lora, train_weights, trained_tensors

IDS = torch.arange(2, 30)[None]
CHOSEN = {"model.layers.0.mlp.experts": (1, 3), "model.layers.1.mlp.experts": (0,)}


@pytest.fixture(params=["weights", "lora"])
def trained(request: pytest.FixtureRequest, tiny_model: Any, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A run folder with trained experts, and the logits of the model that they were saved from."""
    base = Base(model=str(tiny_model("qwen3_moe")))
    model = load(base).model
    if request.param == "weights":
        train_weights(model, CHOSEN)
    else:
        train_lora(model, CHOSEN, rank=2, scale=0.5)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained_tensors(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
        save_experts(model, locate(base), tmp_path / "run" / "experts")
        return tmp_path / "run", model.eval()(IDS).logits


@torch.no_grad()
def test_trained_experts_come_back_onto_their_base(trained: tuple[Path, torch.Tensor]) -> None:
    run, want = trained
    found = ModelRef.resolve(run)
    assert isinstance(found, Experts)
    config = ExpertsConfig.read(found.path)
    assert {name: layer.chosen for name, layer in config.layers.items()} == CHOSEN
    assert config.layers["model.layers.0.mlp.experts"].num_experts == 4
    loaded = load_with_adapter(run)
    torch.testing.assert_close(loaded.model(IDS).logits, want, rtol=1e-5, atol=1e-5)
    assert "over" in loaded.name and not any(weight.requires_grad for weight in loaded.model.parameters())
    bare = load(found.base).model(IDS).logits
    assert (bare - want).norm() > 0.005 * bare.norm()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"num_experts": 8}, r"had 4 experts, in .* it has 8"), ({"moe_intermediate_size": 32}, "does not go onto")],
)
def test_trained_experts_of_another_base_are_refused(
    trained: tuple[Path, torch.Tensor], tiny_model: Any, changes: dict[str, int], said: str
) -> None:
    other = load(Base(model=str(tiny_model("qwen3_moe", name="other", **changes))))
    with pytest.raises(ModelError, match=said):
        attach_experts(other, trained[0] / "experts")
    dense = load(Base(model=str(tiny_model("llama", name="dense"))))
    with pytest.raises(ModelError, match=r"has no experts called model\.layers\.0\.mlp\.experts"):
        attach_experts(dense, trained[0] / "experts")


def test_trained_experts_that_are_damaged_are_refused(trained: tuple[Path, torch.Tensor]) -> None:
    folder = trained[0] / "experts"
    base = load(ModelRef.resolve(folder).base)  # type: ignore[attr-defined]
    weights = folder / "experts.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"experts\.safetensors: is damaged"):
        attach_experts(base, folder)
    tree = json.loads((folder / "experts_config.json").read_text())
    for broken, said in ((tree | {"format": "2"}, "another version"), (tree | {"layers": 3}, "cannot be used")):
        (folder / "experts_config.json").write_text(json.dumps(broken))
        with pytest.raises(ModelError, match=said):
            ExpertsConfig.read(folder)
