"""Quantized folders written one matrix at a time: encoded, counted, and whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.formats.encoding import Encoding, distance, write_encoded
from dsr1_tune.export.weights.accounting import chosen
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.weights.checkpoint import Spec
from dsr1_tune.runs.console import Narrator

QUIET = Narrator(Console(quiet=True))


def halved(name: str, weight: Tensor) -> tuple[dict[str, Tensor], float]:
    return {name: weight.half()}, distance(weight, weight.half())


def encoding(names: frozenset[str], encode: object = halved) -> Encoding:
    specs = lambda name, spec: {name: Spec("F16", spec.shape)}  # noqa: E731
    return Encoding(names, specs, encode, lambda skipped, groups: {"skipped": skipped}, facts={"is": "half"})  # type: ignore[arg-type]


def test_write_encoded_encodes_the_named_matrices_and_copies_the_rest(tiny_base: Path, tmp_path: Path) -> None:
    source = open_source(tiny_base)
    names = chosen(source.layout, False)
    quantized = write_encoded(encoding(names), source, tmp_path, QUIET)
    before, after = load_file(tiny_base / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.half() if name in names else tensor)
    (group,) = [group for group in quantized.groups if group.num_quantized]
    assert (group.part, group.share, group.bits) == ("routed_experts", 1.0, 16.0)
    assert 0 < group.relative_error < 1e-3 and quantized.facts == {"is": "half"}
    skipped = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["skipped"]
    assert "model.layers.1.mlp.gate" in skipped and not any(f"{name}.weight" in names for name in skipped)
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_base / "tokenizer.json").read_bytes()


def test_write_encoded_refuses_an_encoding_that_stands_for_something_else(tiny_base: Path, tmp_path: Path) -> None:
    source = open_source(tiny_base)

    def wiped(name: str, weight: Tensor) -> tuple[dict[str, Tensor], float]:
        return {name: torch.zeros_like(weight).half()}, distance(weight, torch.zeros_like(weight))

    with pytest.raises(ModelError, match=r"experts.*comes back 100% off"):
        write_encoded(encoding(chosen(source.layout, False), wiped), source, tmp_path, QUIET)


def test_distance_is_the_frobenius_norm_in_float32() -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.bfloat16)
    assert distance(weight, torch.zeros(2, 2)) == 5.0
