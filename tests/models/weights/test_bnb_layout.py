"""bitsandbytes' layout on disk: read by its own QuantState, of the sizes that are announced, and named where broken."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.bnb_layout import Kind
from dsr1_tune.models.weights.checkpoint import Spec

KINDS: list[Kind] = ["nf4", "int8"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(st.integers(1, 6), st.sampled_from([64, 128, 320]), st.sampled_from([0, 1, 3]), st.integers(0, 2**31))
def test_bnb_tensors_are_those_that_were_announced(kind: Kind, rows: int, cols: int, experts: int, seed: int) -> None:
    shape = (experts, rows, cols) if experts else (rows, cols)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    name = "experts.down_proj" if experts else "q_proj.weight"
    made, error = bnb_layout.quantize(kind, name, weight)
    assert {part: Spec.of(tensor) for part, tensor in made.items()} == bnb_layout.specs(kind, name, Spec.of(weight))
    assert (0.05 if kind == "nf4" else 0.002) < error < (0.2 if kind == "nf4" else 0.02)
    assert bnb_layout.find(kind, [*made, "norm.weight"]).keys() == {name}
    assert set(bnb_layout.find(kind, made)[name]) == set(made)


def test_bnb_nf4_is_read_by_its_own_quant_state() -> None:
    weight = torch.randn(40, 64)
    made, error = bnb_layout.quantize("nf4", "q.weight", weight)
    state = bnb.QuantState.from_dict(
        {name.removeprefix("q.weight."): part for name, part in made.items() if name != "q.weight"},
        device=torch.device("cpu"),
    )
    back = bnb.dequantize_4bit(made["q.weight"], state)
    assert float((back - weight).norm() / weight.norm()) == pytest.approx(error, rel=1e-4)
    read = bnb_layout.read_state(made[f"q.weight{bnb_layout.STATE}"])
    assert read == {"shape": (40, 64), "offset": pytest.approx(float(state.offset))}


def test_bnb_state_of_another_kind_is_refused() -> None:
    text = bnb_layout._state((2, 64), "F32", 0.5).replace(b'"blocksize": 64', b'"blocksize": 32')
    with pytest.raises(ValueError, match="its blocksize is 32, not 64"):
        bnb_layout.read_state(torch.frombuffer(bytearray(text), dtype=torch.uint8))


@pytest.mark.parametrize("kind", KINDS)
def test_bnb_weight_without_one_of_its_tensors_is_named(kind: Kind) -> None:
    made, _ = bnb_layout.quantize(kind, "q.weight", torch.randn(4, 64))
    absent = "q.weight.absmax" if kind == "nf4" else "q.weight_format"
    with pytest.raises(ModelError, match=rf"q\.weight: {absent} is missing"):
        bnb_layout.find(kind, made.keys() - {absent})
