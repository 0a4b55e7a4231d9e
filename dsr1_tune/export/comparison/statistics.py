"""The arithmetic of a comparison: losses, agreement, divergence, and how far chance may move each of them.

N rows, T tokens, V vocabulary, S bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

NUM_SAMPLES = 1000
INTERVAL = 0.95
_FLOOR = -60_000.0  # float16 reaches to -65504


@dataclass(frozen=True)
class Estimate:
    """A number, and the interval in which it lies in 95 % of the samples drawn from the same rows."""

    value: float
    low: float
    high: float


def as_kept(log_probs_TV: Tensor) -> Tensor:
    """Log-probabilities as they are kept on disk: in float16."""
    return log_probs_TV.float().clamp_min(_FLOOR).half()


def divergence_T(kept_a_TV: Tensor, kept_b_TV: Tensor) -> Tensor:
    """KL(A‖B) over the whole vocabulary, in nats, of distributions as they are kept.

    Both were rounded in the same way and are made to sum to 1 again, so that equal models differ by exactly 0, no
    value is negative, and rounding changes it by less than about 1e-5.
    """
    a_TV, b_TV = (kept.float().log_softmax(-1) for kept in (kept_a_TV, kept_b_TV))
    return (a_TV.exp() * (a_TV - b_TV)).sum(-1).clamp_min(0.0)


def perplexity(loss: float) -> float:
    """e to the loss; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def resampled(num_rows: int, seed: int) -> Floats:
    """How often each row stands in each bootstrap sample, (S, N): the same for both models, in pairs."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=NUM_SAMPLES).astype(np.float64)


def estimate(counts_SN: Floats, measure: Callable[[Floats], Floats]) -> Estimate:
    """`measure` of the rows as they are, and its interval over the bootstrap samples (percentile method).

    `measure` gets how often each row counts, (S, N), and gives a number for each sample, (S).
    """
    num_rows = counts_SN.shape[1]
    value = float(measure(np.ones((1, num_rows)))[0])
    drawn_S = measure(counts_SN)
    drawn_S = drawn_S[np.isfinite(drawn_S)]
    if not len(drawn_S):
        return Estimate(value, value, value)
    low, high = np.quantile(drawn_S, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Estimate(value, float(low), float(high))


def ratio(above_N: Floats, below_N: Floats) -> Callable[[Floats], Floats]:
    """The measure Σ above / Σ below: a mean over tokens, where rows have different numbers of them."""

    def measure(counts_SN: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            result: Floats = (counts_SN @ above_N) / (counts_SN @ below_N)
        return result

    return measure


def increase(a_N: Floats, b_N: Floats) -> Callable[[Floats], Floats]:
    """The measure Σ b / Σ a - 1: by which share B's loss is above A's on the same rows."""
    of_b = ratio(b_N, a_N)
    return lambda counts_SN: of_b(counts_SN) - 1


def difference(a_N: Floats, b_N: Floats) -> Callable[[Floats], Floats]:
    """The measure mean(b - a), for scores of the same rows."""
    return ratio(b_N - a_N, np.ones_like(a_N))


def mean(values_N: Floats) -> Callable[[Floats], Floats]:
    """The measure mean(values)."""
    return ratio(values_N, np.ones_like(values_N))


def log_probs(logits_TV: Tensor) -> Tensor:
    """Logits → log-probabilities in float32."""
    return torch.log_softmax(logits_TV.float(), -1)
