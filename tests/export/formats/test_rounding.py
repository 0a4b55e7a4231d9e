"""Rounding to groups of 4-bit integers, and the packed checkpoint that is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsr1_tune.export.formats import rounding
from dsr1_tune.export.formats.rounding import round_to_nearest
from dsr1_tune.export.weights.accounting import Counting
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.quant.w4a16 import dequantize, unpack
from tests.conftest import TinyModel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_nearer_than_by_the_range_alone(dtype: torch.dtype) -> None:
    weight_NK = (torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)
    q_NK, scale_NG = round_to_nearest(weight_NK, 64)
    assert (q_NK.dtype, scale_NG.dtype, scale_NG.shape) == (torch.int8, dtype, (64, 4))
    assert -8 <= int(q_NK.min()) < int(q_NK.max()) <= 7
    exact = weight_NK.float()
    groups = exact.view(64, 4, 64)
    by_range = groups.abs().amax(-1, keepdim=True) / 7.5
    plain = (groups / by_range).round().clamp(-8, 7) * by_range
    ours = (dequantize(q_NK, scale_NG).float() - exact).norm()
    assert float(ours) < 0.96 * float((plain - groups).norm())
    assert float(ours / exact.norm()) < 0.11


def test_rounding_takes_the_nearest_integer_of_each_scale() -> None:
    weight_NK = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    q_NK, scale_NG = round_to_nearest(weight_NK, 32)
    for row in range(8):
        for col in range(64):
            steps = [abs(float(weight_NK[row, col]) - q * float(scale_NG[row, col // 32])) for q in range(-8, 8)]
            assert steps[int(q_NK[row, col]) + 8] <= min(steps) + 1e-6


def test_rounding_keeps_zeros_and_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_NK = torch.randn(9, 64, generator=torch.Generator().manual_seed(2))
    weight_NK[3, :32] = 0
    whole = round_to_nearest(weight_NK, 32)
    assert not dequantize(*whole)[3, :32].any()
    assert bool((whole[1] > 0).all())
    monkeypatch.setattr(rounding, "_MAX_WEIGHTS", 128)
    assert all(torch.equal(one, other) for one, other in zip(round_to_nearest(weight_NK, 32), whole, strict=True))


def test_packed_counts_what_was_really_written(tiny_model: TinyModel, tmp_path: Path) -> None:
    source = open_source(tiny_model("qwen3_moe"))
    name = "model.layers.0.mlp.experts.0.up_proj.weight"
    counting = Counting(source.layout)
    packed = rounding.Packed(source.weights, frozenset({name}), 64, counting)
    scale = packed.read(f"{name}_scale")  # asked for before the packed part: computed again, not held
    assert torch.equal(unpack(packed.read(f"{name}_packed")), round_to_nearest(source.weights.read(name), 64)[0])
    assert torch.equal(packed.read(f"{name}_scale"), scale)
    assert list(counting.names) == [name]
