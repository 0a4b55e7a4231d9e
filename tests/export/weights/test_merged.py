"""Merged weights: rounded once, in bfloat16 or block-FP8 as the base is, and everything else left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Merge
from dsr1_tune.export import merge
from dsr1_tune.export.weights.certificate import NotCertified
from dsr1_tune.export.weights.merged import MergedFp8
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.load import load
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.quant.fp8 import to_blocks
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import certificate_of, in_bf16, in_fp8, merged, quiet


def test_merged_bf16_weights_are_rounded_once(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_on(in_bf16)
    certificate = merged(run.path, tmp_path / "merged")
    assert certificate["dtype"] == "BF16"
    assert certificate["outputs"]["max_difference"] <= certificate["outputs"]["bound"] <= 2e-4
    assert all(share == pytest.approx(1, abs=0.02) for share in certificate["tensors"]["kept_by_part"].values())
    assert 0 < certificate["outputs"]["mean_kl"] < 1e-3
    base = AutoModelForCausalLM.from_pretrained(run.path.parent / "base", dtype=torch.float32)
    exact = PeftModel.from_pretrained(base, str(run.adapter)).merge_and_unload().state_dict()
    written, layout = Checkpoint(tmp_path / "merged"), open_source(run.path).layout
    for name, piece in layout.pieces.items():
        want = piece.of(exact[piece.parameter]).to(written.read(name).dtype)
        assert torch.equal(written.read(name), want), name


def test_merged_block_fp8_weights_stay_fp8_or_become_bfloat16(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_on(in_fp8)
    base = Checkpoint(run.path.parent / "base")
    merged(run.path, tmp_path / "fp8", fp8="keep")
    kept = Checkpoint(tmp_path / "fp8")
    assert {name: kept.spec(name) for name in kept.names} == {name: base.spec(name) for name in base.names}
    untouched = "model.embed_tokens.weight"
    assert torch.equal(kept.read(untouched), base.read(untouched))
    certificate = merged(run.path, tmp_path / "bf16")
    plain = Checkpoint(tmp_path / "bf16")
    assert not any(name.endswith("_scale_inv") for name in plain.names)
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert certificate["outputs"]["mean_kl"] < 1e-3
    from dsr1_tune.config import Base

    text = torch.arange(40)[None]
    with torch.no_grad():
        one = load(Base(model=str(tmp_path / "fp8"), dtype="float32")).model(text).logits
        two = load(Base(model=str(tmp_path / "bf16"), dtype="float32")).model(text).logits
    # Float8 keeps three binary digits behind the first.
    assert float((one - two).norm() / two.norm()) < 0.2


def test_merged_block_fp8_keeps_small_updates_and_says_how_much_before_it_writes(
    run_on: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, console = run_on(in_fp8, rate=5e-4), quiet()
    said: list[str] = []
    write = merge.write_weights

    def note(*given: Any, **more: Any) -> Any:
        said.append(console.file.getvalue())  # type: ignore[attr-defined]
        return write(*given, **more)

    monkeypatch.setattr(merge, "write_weights", note)
    merge.run(run.path, tmp_path / "fp8", Merge(fp8="keep"), console)
    assert re.search(r"routed_experts: (9\d|10\d)\.\d% of the update", said[0])
    assert "Without --set merge.fp8=keep the model becomes bfloat16" in " ".join(said[0].split())
    certificate = certificate_of(tmp_path / "fp8")
    tensors, loss = certificate["tensors"], certificate["loss"]
    assert tensors["num_changed"] == tensors["num_targeted"] and not tensors["rounded_away"]
    assert all(share == pytest.approx(1, abs=0.15) for share in tensors["kept_by_part"].values())
    assert loss["before"] - loss["merged"] > 0.7 * (loss["before"] - loss["run"]) > 0


def test_merged_block_fp8_rounded_to_the_nearest_is_refused(
    run_on: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor has some weight that changed; what was learned is gone."""

    def to_nearest(self: MergedFp8, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return to_blocks(self.merged.exact(name), self.block_size)

    monkeypatch.setattr(MergedFp8, "_encode", to_nearest)
    with pytest.raises(NotCertified, match="every tensor has lost most of that in rounding") as caught:
        merge.run(run_on(in_fp8, rate=5e-4).path, tmp_path / "fp8", Merge(fp8="keep"), quiet())
    assert "--set merge.fp8=bfloat16" in caught.value.hint and not (tmp_path / "fp8").exists()


def test_merged_weights_keep_further_prediction_layers(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    def with_more(base: Path) -> None:
        weights = load_file(base / "model.safetensors")
        weights["model.layers.2.eh_proj.weight"] = torch.randn(64, 128)
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    run = run_on(with_more)
    merged(run.path, tmp_path / "merged")
    name = "model.layers.2.eh_proj.weight"
    assert torch.equal(Checkpoint(tmp_path / "merged").read(name), Checkpoint(run.path.parent / "base").read(name))
