"""PPO's formulas on padded tensors equal the plain ones, token by token in float64, whatever stands in the padding."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dsr1_tune.align.online import losses
from tests.align import slow_ppo as slow

Rows = list[list[float]]
EXACT = {"rtol": 1e-10, "atol": 1e-11}
SEEDS = range(20)
VOCABULARY = 11


@dataclass(frozen=True)
class Case:
    """N answers of 1 to 9 tokens, and a way to pad them."""

    draw: random.Random
    lengths: list[int]
    num_padding: int

    @classmethod
    def of(cls, seed: int) -> Case:
        draw = random.Random(seed)
        # The first seed has a single answer of a single token.
        lengths = [draw.randint(1, 9) for _ in range(draw.randint(2, 6))] if seed else [1]
        return cls(draw, lengths, draw.randint(0, 3))

    def rows(self, spread: float = 1.0, near: Rows | None = None) -> Rows:
        """Random numbers, around 0 or near other ones."""
        rows = [[self.draw.gauss(0, spread) for _ in range(length)] for length in self.lengths]
        if near:
            rows = [
                [x + other for x, other in zip(row, others, strict=True)]
                for row, others in zip(rows, near, strict=True)
            ]
        return rows

    @property
    def width(self) -> int:
        return max(self.lengths) + self.num_padding

    def padded(self, rows: Rows) -> Tensor:
        """(B, T), in the padding large numbers that must not count."""
        return torch.tensor(
            [row + [self.draw.gauss(0, 50) for _ in range(self.width - len(row))] for row in rows], dtype=torch.float64
        )

    @property
    def mask(self) -> Tensor:
        return torch.tensor([[1.0] * n + [0.0] * (self.width - n) for n in self.lengths], dtype=torch.float64)

    def ragged(self, padded: Tensor) -> Rows:
        return [row[:length].tolist() for row, length in zip(padded, self.lengths, strict=True)]

    def same(self, padded: Tensor, expected: Rows) -> None:
        """Equal on the answers, zero on the padding."""
        for row, expected_row in zip(self.ragged(padded), expected, strict=True):
            torch.testing.assert_close(torch.tensor(row), torch.tensor(expected_row), **EXACT)
        assert (padded * (1 - self.mask) == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_probs_and_entropy(seed: int, temperature: float) -> None:
    torch.manual_seed(seed)
    logits_BTV = torch.randn(3, 4, VOCABULARY, dtype=torch.float64) * 4
    ids_BT = torch.randint(VOCABULARY, (3, 4))
    logp_BT, entropy_BT = losses.log_probs(logits_BTV, ids_BT, temperature)
    for b in range(3):
        for t in range(4):
            logits, token = logits_BTV[b, t].tolist(), int(ids_BT[b, t])
            assert float(logp_BT[b, t]) == pytest.approx(slow.log_prob(logits, token, temperature), abs=1e-11)
            assert float(entropy_BT[b, t]) == pytest.approx(slow.entropy(logits, temperature), abs=1e-11)


def test_logits_in_16_bits_are_summed_in_32() -> None:
    torch.manual_seed(0)
    logits_BTV = (torch.randn(2, 3, VOCABULARY) * 10).to(torch.bfloat16)
    ids_BT = torch.randint(VOCABULARY, (2, 3))
    logp_BT, entropy_BT = losses.log_probs(logits_BTV, ids_BT)
    assert logp_BT.dtype == entropy_BT.dtype == torch.float32
    for b in range(2):
        for t in range(3):
            logits = logits_BTV[b, t].tolist()
            assert float(logp_BT[b, t]) == pytest.approx(slow.log_prob(logits, int(ids_BT[b, t]), 1.0), abs=2e-5)
            assert float(entropy_BT[b, t]) == pytest.approx(slow.entropy(logits, 1.0), abs=2e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_per_token(seed: int) -> None:
    case = Case.of(seed)
    logp, ref_logp = case.rows(), case.rows()
    scores = [case.draw.gauss(0, 3) for _ in case.lengths]
    found = losses.rewards_per_token(
        torch.tensor(scores, dtype=torch.float64), case.padded(logp), case.padded(ref_logp), case.mask, 0.1
    )
    case.same(found, slow.rewards_per_token(scores, logp, ref_logp, 0.1))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_and_returns(seed: int, gamma: float, lam: float) -> None:
    case = Case.of(seed)
    rewards, values = case.rows(), case.rows()
    found, returns = losses.advantages(case.padded(rewards), case.padded(values), case.mask, gamma, lam)
    expected, expected_returns = slow.advantages(rewards, values, gamma, lam)
    case.same(found, expected)
    case.same(returns, expected_returns)


def test_advantages_that_can_be_checked_by_hand() -> None:
    """One reward at the end: with λ = 1 every token's return is that reward, with λ = 0 only the last token sees it."""
    rewards, values, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.7]]), torch.ones(1, 3)
    whole, returns = losses.advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(whole, torch.tensor([[0.8, 0.6, 0.3]]))
    torch.testing.assert_close(returns, torch.ones(1, 3))
    step, _ = losses.advantages(rewards, values, mask, gamma=1.0, lam=0.0)
    torch.testing.assert_close(step, torch.tensor([[0.2, 0.3, 0.3]]))


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("seed", SEEDS[1:])
def test_whitening(seed: int, shift_mean: bool) -> None:
    case = Case.of(seed)
    rows = [[3 + 2 * x for x in row] for row in case.rows()]
    (found,) = losses.whitened([case.padded(rows)], [case.mask], shift_mean=shift_mean)
    case.same(found, slow.whiten(rows, shift_mean))
    every = [x for row in case.ragged(found) for x in row]
    assert slow.variance(every) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS[2:8])
def test_whitening_in_portions(seed: int) -> None:
    """Portions that are whitened by the moments of all of them come to what the whole comes to."""
    case = Case.of(seed)
    rows = case.rows()
    x_BT, mask_BT = case.padded(rows), case.mask
    portions, masks = [x_BT[:1], x_BT[1:]], [mask_BT[:1], mask_BT[1:]]
    case.same(torch.cat(losses.whitened(portions, masks)), slow.whiten(rows))


def test_whitening_what_is_all_the_same_gives_zeros() -> None:
    (found,) = losses.whitened([torch.full((2, 3), 7.0)], [torch.ones(2, 3)])
    assert found.abs().max() < 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_policy_loss(seed: int) -> None:
    case = Case.of(seed)
    old, gains = case.rows(), case.rows()
    new = case.rows(spread=0.3, near=old)
    found = losses.policy_loss(case.padded(new), case.padded(old), case.padded(gains), case.mask, 0.2)
    expected = slow.policy_loss(new, old, gains, 0.2)
    assert float(found["loss"]) == pytest.approx(expected.loss, rel=1e-10)
    assert float(found["clip_fraction"]) == pytest.approx(expected.clip_fraction, rel=1e-10)
    assert float(found["approx_kl"]) == pytest.approx(expected.approx_kl, rel=1e-10)
    assert float(found["ratio"]) == pytest.approx(expected.mean_ratio, rel=1e-10)


@pytest.mark.parametrize("seed", SEEDS[1:6])
def test_policy_gradient(seed: int) -> None:
    """Autograd's gradient is the slope of the plain formula, and none on padding."""
    case = Case.of(seed)
    old, gains = case.rows(), case.rows()
    new = case.rows(spread=0.3, near=old)
    new_BT = case.padded(new).requires_grad_()
    losses.policy_loss(new_BT, case.padded(old), case.padded(gains), case.mask, 0.2)["loss"].backward()
    assert new_BT.grad is not None
    expected = _slopes(new, lambda moved: slow.policy_loss(moved, old, gains, 0.2).loss)
    for row, expected_row in zip(case.ragged(new_BT.grad), expected, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-7)
    assert (new_BT.grad * (1 - case.mask) == 0).all()


def test_the_first_step_of_an_update_clips_nothing() -> None:
    case = Case.of(3)
    logp, gains = case.padded(case.rows()), case.rows()
    found = losses.policy_loss(logp, logp.clone(), case.padded(gains), case.mask, 0.2)
    assert float(found["ratio"]) == 1
    assert float(found["approx_kl"]) == 0
    assert float(found["clip_fraction"]) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_value_loss(seed: int) -> None:
    case = Case.of(seed)
    old, returns = case.rows(), case.rows()
    new = case.rows(spread=0.4, near=old)
    new_BT = case.padded(new).requires_grad_()
    found = losses.value_loss(new_BT, case.padded(old), case.padded(returns), case.mask, 0.2)
    expected = slow.value_loss(new, old, returns, 0.2)
    assert float(found["loss"].detach()) == pytest.approx(expected.loss, rel=1e-10)
    assert float(found["clip_fraction"]) == pytest.approx(expected.clip_fraction, rel=1e-10)
    found["loss"].backward()
    assert new_BT.grad is not None
    slopes = _slopes(new, lambda moved: slow.value_loss(moved, old, returns, 0.2).loss)
    for row, expected_row in zip(case.ragged(new_BT.grad), slopes, strict=True):
        assert row == pytest.approx(expected_row, abs=1e-7)


@pytest.mark.parametrize("kl", [0.0, 5.9, 6.0, 6.3, 7.2, 60.0])
def test_next_beta(kl: float) -> None:
    beta = losses.next_beta(0.1, kl, target=6.0, num_answers=64, horizon=10_000)
    assert beta == pytest.approx(slow.next_beta(0.1, kl, 6.0, 64, 10_000), rel=1e-12)
    assert (beta > 0.1) == (kl > 6) and (beta < 0.1) == (kl < 6)


@pytest.mark.parametrize("seed", SEEDS[1:])
def test_explained_variance(seed: int) -> None:
    case = Case.of(seed)
    returns = case.rows()
    values = case.rows(spread=0.5, near=returns)
    found = losses.explained_variance(case.padded(values), case.padded(returns), case.mask)
    assert found == pytest.approx(slow.explained_variance(values, returns), rel=1e-9)


def _slopes(rows: Rows, loss: Callable[[Rows], float], step: float = 1e-6) -> Rows:
    """The slope of `loss` at every token, from two values of it."""
    slopes: Rows = []
    for i, row in enumerate(rows):
        slopes.append([])
        for t in range(len(row)):
            up, down = (_with(rows, i, t, row[t] + change) for change in (step, -step))
            slopes[-1].append((loss(up) - loss(down)) / (2 * step))
    return slopes


def _with(rows: Rows, i: int, t: int, number: float) -> Rows:
    moved = [list(row) for row in rows]
    moved[i][t] = number
    return moved
