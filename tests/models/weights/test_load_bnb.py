"""Folders in bitsandbytes' layout are loaded as they are, experts among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.bnb_layout import Kind
from dsr1_tune.models.weights.layout import Piece
from dsr1_tune.models.weights.load_bnb import is_plain
from dsr1_tune.moe.quantized_experts import memory_of
from dsr1_tune.quant import int8, nf4

IDS = torch.arange(2, 30)[None]
CONFIGS: dict[Kind, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def as_bnb(folder: Path, kind: Kind) -> dict[str, torch.Tensor]:
    """Put the projections of a model's folder into the layout; returns them as they are to come back."""
    weights = load_file(folder / "model.safetensors")
    stored, back = dict(weights), {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            del stored[name]
            stored |= bnb_layout.quantize(kind, name, weight)[0]
            parts = (nf4 if kind == "nf4" else int8).quantize(weight.unsqueeze(0))
            if kind == "nf4":
                rows = [parts[part] for part in ("packed", "absmax", "scale", "offset")]
                back[name] = nf4.Nf4(*rows, *weight.shape, torch.float32)[0]
            else:
                back[name] = int8.Int8(parts["packed"], parts["scale"], torch.float32)[0]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    tree = json.loads((folder / "config.json").read_text())
    tree["quantization_config"] = {"quant_method": "bitsandbytes", **CONFIGS[kind]}
    (folder / "config.json").write_text(json.dumps(tree))
    return weights | back


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@torch.no_grad()
def test_bnb_folder_computes_with_what_is_stored_in_it(tiny_model: Any, kind: Kind) -> None:
    folder, plain = tiny_model("qwen3_moe"), tiny_model("qwen3_moe", name="plain")
    save_file(as_bnb(folder, kind), plain / "model.safetensors", {"format": "pt"})
    held, exact = (load(Base(model=str(one), dtype="float32")).model for one in (folder, plain))
    torch.testing.assert_close(held(IDS).logits, exact(IDS).logits, rtol=1e-4, atol=1e-4)
    assert memory_of(held) < (0.5 if kind == "nf4" else 0.6) * memory_of(exact)
    assert held.model.layers[0].mlp.experts.gate_up_proj.shape == exact.model.layers[0].mlp.experts.gate_up_proj.shape


def test_bnb_folder_with_a_part_left_out_is_refused_by_name(tiny_model: Any) -> None:
    folder = tiny_model("qwen3_moe")
    as_bnb(folder, "nf4")
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.2.up_proj.weight"
    del stored[f"{name}.nested_absmax"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"experts\.2\.up_proj\.weight.*is missing"):
        load(Base(model=str(folder)))
    for part in [other for other in stored if other.startswith(name)]:
        del stored[part]
    stored[name] = torch.zeros(64, 64)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"experts\.2\.up_proj\.weight is not quantized, but its neighbours are"):
        load(Base(model=str(folder)))


def test_rows_that_are_no_run_are_not_held_as_they_are() -> None:
    assert is_plain(Piece("a", "a")) and is_plain(Piece("a", "a", 0, (1, 1, 2)))
    assert not is_plain(Piece("a", "a", 0, (0, 2, 2))) and not is_plain(Piece("a", "a", 0, is_transposed=True))
