"""The arithmetic of a comparison against its plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsr1_tune.export.comparison.statistics import (
    as_kept,
    difference,
    divergence_T,
    estimate,
    increase,
    log_probs,
    mean,
    perplexity,
    ratio,
    resampled,
)


def test_divergence_is_kl_over_the_whole_vocabulary() -> None:
    torch.manual_seed(0)
    a_TV, b_TV = torch.randn(7, 5000) * 4, torch.randn(7, 5000) * 4
    near_TV = a_TV + torch.randn(7, 5000) * 0.01
    for other_TV in (b_TV, near_TV):
        p_TV, q_TV = a_TV.double().softmax(-1), other_TV.double().softmax(-1)
        wanted_T = (p_TV * (p_TV / q_TV).log()).sum(-1)
        found_T = divergence_T(as_kept(log_probs(a_TV)), as_kept(log_probs(other_TV)))
        assert found_T.double() == pytest.approx(wanted_T, rel=5e-3, abs=1e-5)


def test_divergence_of_equal_models_is_zero_and_never_negative() -> None:
    torch.manual_seed(0)
    a_TV = log_probs(torch.randn(50, 300) * 30)  # almost sure, with probabilities far below float16's
    assert divergence_T(as_kept(a_TV), as_kept(a_TV)).tolist() == [0.0] * 50
    assert (divergence_T(as_kept(a_TV), as_kept(a_TV + 1e-4 * torch.randn(50, 300))) >= 0).all()
    never_TV = torch.tensor([[0.0, -torch.inf]])
    assert divergence_T(as_kept(never_TV), as_kept(torch.tensor([[0.5, 0.5]]).log())).item() == pytest.approx(
        np.log(2), abs=1e-3
    )


def test_interval_is_the_normal_one_for_many_rows() -> None:
    values_N = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = estimate(resampled(2000, 0), mean(values_N))
    assert found.value == pytest.approx(values_N.mean())
    half = 1.96 * values_N.std() / np.sqrt(2000)
    assert found.low == pytest.approx(values_N.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values_N.mean() + half, abs=0.15 * half)


def test_ratio_is_a_mean_over_tokens_and_pairs_take_out_what_rows_share() -> None:
    draw = np.random.default_rng(2)
    tokens_N = draw.integers(1, 50, 300).astype(float)
    a_N = tokens_N * draw.uniform(0.5, 5.0, 300)  # rows differ far more than the two models do
    b_N = a_N * draw.normal(1.02, 0.005, 300)
    counts_SN = resampled(300, 0)
    assert estimate(counts_SN, ratio(a_N, tokens_N)).value == pytest.approx(a_N.sum() / tokens_N.sum())
    found = estimate(counts_SN, increase(a_N, b_N))
    assert found.value == pytest.approx(b_N.sum() / a_N.sum() - 1)
    assert 0.018 < found.low < found.value < found.high < 0.022
    alone = estimate(counts_SN, ratio(a_N, tokens_N))
    assert (alone.high - alone.low) / alone.value > 10 * (found.high - found.low)


def test_difference_is_paired() -> None:
    a_N, b_N = np.array([0.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])
    found = estimate(resampled(4, 0), difference(a_N, b_N))
    assert (found.value, found.low) == (0.25, 0.0) and 0.5 <= found.high <= 1.0


def test_resampled_draws_the_same_samples_for_a_seed() -> None:
    assert (resampled(5, 3) == resampled(5, 3)).all() and (resampled(5, 3) != resampled(5, 4)).any()
    assert (resampled(5, 3).sum(1) == 5).all()


def test_estimate_of_one_row_has_no_interval_and_of_a_broken_model_no_number() -> None:
    one = estimate(resampled(1, 0), mean(np.array([2.0])))
    assert (one.value, one.low, one.high) == (2.0, 2.0, 2.0)
    assert np.isnan(estimate(resampled(2, 0), mean(np.array([1.0, np.nan]))).value)
    assert perplexity(1000.0) == np.inf
