"""AdamW for 16-bit weights: torch's numbers in float32, unbiased in bfloat16, and the same again when resumed."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dsr1_tune.runs.trainer import stochastic_adamw
from dsr1_tune.runs.trainer.stochastic_adamw import StochasticAdamW, round_to_bfloat16


def gradients(num_steps: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(5, 7, generator=generator).to(dtype), torch.randn(3, generator=generator).to(dtype))
        for _ in range(num_steps)
    ]


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    return [nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in ((5, 7), (3,))]


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: list[tuple[Tensor, Tensor]]) -> None:
    for step in steps:
        for weight, gradient in zip(params, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_in_float32_the_numbers_are_torchs(weight_decay: float, rounding: Any) -> None:
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    ours, theirs = weights(), weights()
    train(StochasticAdamW(ours, **settings, rounding=rounding), ours, gradients(10))
    train(torch.optim.AdamW(theirs, **settings, foreach=False), theirs, gradients(10))
    for got, want, start in zip(ours, theirs, weights(), strict=True):
        assert torch.equal(got, want)
        assert not torch.equal(got, start)


def test_a_large_parameter_is_updated_in_pieces_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = weights(), weights()
    train(StochasticAdamW(whole, lr=0.1), whole, gradients(3))
    monkeypatch.setattr(stochastic_adamw, "_PIECE", 14)  # two rows of seven
    sizes: list[int] = []
    update = stochastic_adamw._update
    monkeypatch.setattr(
        stochastic_adamw, "_update", lambda weight, *rest: (sizes.append(len(weight)), update(weight, *rest))
    )
    train(StochasticAdamW(pieces, lr=0.1), pieces, gradients(3))
    assert all(torch.equal(got, want) for got, want in zip(pieces, whole, strict=True))
    assert sizes[:4] == [2, 2, 1, 3]


def tiny_updates(rounding: Any, num_steps: int = 200) -> tuple[Tensor, float]:
    """Weights of 1.0 after steps of 0.0004 each, where bfloat16's next number below 1 is 0.0039 away."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=4e-4, eps=0.0, rounding=rounding)
    for _ in range(num_steps):
        weight.grad = torch.ones_like(weight)  # Adam's update is then lr, whatever the step
        optimizer.step()
    return weight.detach(), num_steps * 4e-4


def test_many_tiny_updates_move_bfloat16_weights_on_average() -> None:
    weight, wanted = tiny_updates("stochastic")
    moved = 1 - weight.float()
    assert float(moved.mean()) == pytest.approx(wanted, rel=0.02)
    assert float(moved.std()) > 0


def test_rounded_to_nearest_they_are_lost() -> None:
    weight, _ = tiny_updates("nearest")
    assert torch.equal(weight, torch.ones_like(weight))


def test_rounding_gives_a_neighbour_with_the_right_probability() -> None:
    low, high = 1.0, 1.0078125
    exact = torch.full((100_000,), low + 0.25 * (high - low))
    rounded = round_to_bfloat16(exact, torch.Generator().manual_seed(1)).float()
    assert set(rounded.unique().tolist()) == {low, high}
    assert float((rounded == high).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_what_bfloat16_can_hold_is_not_rounded() -> None:
    exact = torch.tensor([0.0, -0.0, 1.5, -3.0e38, float("inf"), float("-inf")]).bfloat16().float()
    rounded = round_to_bfloat16(exact, torch.Generator())
    assert torch.equal(rounded.float().view(torch.int32), exact.view(torch.int32))
    not_numbers = torch.tensor([-1, 0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert round_to_bfloat16(not_numbers, torch.Generator()).isnan().all()


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_the_state_is_float32_and_stays_so_when_it_is_loaded(rounding: Any) -> None:
    params = weights(torch.bfloat16)
    optimizer = StochasticAdamW(params, lr=0.1, rounding=rounding)
    train(optimizer, params, gradients(2, torch.bfloat16))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = StochasticAdamW(weights(torch.bfloat16), lr=0.1, rounding=rounding)
    other.load_state_dict(torch.load(file, weights_only=True))
    for ours, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert theirs[name].dtype == torch.float32
            assert torch.equal(ours[name], theirs[name])
            assert not torch.equal(ours[name], ours[name].bfloat16().float())


def test_a_resumed_run_equals_an_unbroken_one_whatever_else_drew_random_numbers() -> None:
    steps = gradients(6, torch.bfloat16)
    torch.manual_seed(7)
    unbroken = weights(torch.bfloat16)
    train(StochasticAdamW(unbroken, lr=1e-3), unbroken, steps)

    torch.manual_seed(7)
    first = weights(torch.bfloat16)
    optimizer = StochasticAdamW(first, lr=1e-3)
    train(optimizer, first, steps[:3])
    torch.manual_seed(8)
    torch.rand(5)
    resumed = [nn.Parameter(weight.detach().clone()) for weight in first]
    going_on = StochasticAdamW(resumed, lr=1e-3)
    going_on.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(going_on, resumed, steps[3:])
    assert all(torch.equal(got, want) for got, want in zip(resumed, unbroken, strict=True))

    torch.manual_seed(9)
    otherwise = weights(torch.bfloat16)
    train(StochasticAdamW(otherwise, lr=1e-3), otherwise, steps)
    assert not torch.equal(otherwise[0], unbroken[0])


def test_nothing_as_large_as_the_weights_is_kept_but_the_state() -> None:
    params = weights(torch.bfloat16)
    optimizer = StochasticAdamW(params, lr=0.1)
    train(optimizer, params, gradients(1, torch.bfloat16))
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    num_weights = sum(weight.numel() for weight in params)
    assert held == 8 * num_weights + 4 * len(params)  # two float32 numbers a weight, and the number of the step


def test_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        StochasticAdamW(weights(torch.float16), lr=0.1)
