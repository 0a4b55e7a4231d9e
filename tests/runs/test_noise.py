"""Noise: what last digits change, in each number format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dsr1_tune.runs.noise import loss_noise, nudged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nudged_moves_numbers_as_much_as_rounding_does(dtype: torch.dtype) -> None:
    exact = torch.randn(400, 500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded = exact.to(dtype)
    off = nudged(rounded, dtype, torch.Generator().manual_seed(1)).double() - rounded.double()
    assert float(off.norm() / (rounded.double() - exact).norm()) == pytest.approx(1, abs=0.05)
    assert 0.07 < float((off != 0).double().mean()) < 0.1


def test_nudged_leaves_zeros_vectors_and_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    assert not nudged(torch.zeros(9, 9), torch.float32, generator).any()
    for kept in (torch.ones(9), torch.ones(9, 9, dtype=torch.uint8)):
        assert nudged(kept, torch.float32, generator) is kept


def test_loss_noise_falls_with_the_number_of_tokens_and_grows_with_the_step() -> None:
    def noise(num_tokens: int, dtype: torch.dtype) -> float:
        torch.manual_seed(0)
        model = nn.Linear(64, 64).requires_grad_(False)
        text = torch.randn(num_tokens, 64)
        wanted = torch.randint(0, 64, (num_tokens,))

        def measure() -> float:
            return float(nn.functional.cross_entropy(model(text).double(), wanted))

        return loss_noise(model, measure, dtype, measure())

    assert noise(8, torch.bfloat16) > 2 * noise(2048, torch.bfloat16) > 100 * noise(8, torch.float32) > 0
