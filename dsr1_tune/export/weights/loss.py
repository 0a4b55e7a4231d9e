"""The merged model's loss: base and update must have the trained model's, and rounding must leave what was learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from dsr1_tune.export.weights.outputs import TRAIN_AGAIN, NotCertified
from dsr1_tune.runs.noise import NOISE_DEVIATIONS, SAMPLES, nudged

SURELY_NOISE, SURELY_SHARE = 1e-4, 0.02
"""Nats a token, and a share of what training changed, below which nothing more is measured."""
MAY_ROUND = 0.25
"""The share of what training changed that rounding may cost."""
MAY_DIFFER_4BIT = 0.4
"""The share of it that a run over 4 bits may have had from making good their error, which 16 bits do not have."""
OTHER_ARITHMETIC = 2.0
"""In 16 bits more is rounded than weights: so much greater is the noise against a loss that is computed in 32."""

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class LossCheck:
    """The merged model's loss on the run's held-out records against what the run measured."""

    merged: float
    run: float
    """At its end."""
    tolerance: float
    """How far above that the merged model's may be."""
    before: float | None = None
    """At its beginning; None in certificates of earlier versions."""


@dataclass(frozen=True)
class Recorded:
    """What a run measured, and how it computed."""

    before: float
    after: float
    dtype: torch.dtype
    is_qlora: bool = False
    is_copy: bool = False
    """Whether it was merged into a 16-bit copy of its base, whose numbers were rounded once."""

    @property
    def gain(self) -> float:
        """What training changed."""
        return abs(self.before - self.after)


@dataclass(frozen=True)
class Losses:
    """Losses in float32 on the run's held-out records; `of` takes them of a model that is read as it is needed."""

    of: Callable[[Read], float]
    base: Read
    added_up: Read
    """Base and update before the sum is rounded."""
    is_rounded: bool

    def noise(self, dtype: torch.dtype, loss: float) -> float:
        """How far the loss of base and update, which is `loss`, may be off where only rounding to `dtype` differs."""
        off = [self.of(with_other_digits(self.added_up, dtype, seed)) - loss for seed in range(SAMPLES)]
        return NOISE_DEVIATIONS * math.sqrt(sum(one**2 for one in off) / SAMPLES)


def check_loss(run: Recorded, merged: float, losses: Losses, too_coarse: str) -> LossCheck:
    """Hold the merged model's loss against the trained model's. Raises NotCertified if it is not as good.

    What base and update have before they are rounded must be the run's, but for noise; what rounding costs is a share
    of what training changed. A merge that loses half of that never passes, unless it is less than the noise.
    `too_coarse` is what to do if it is the rounding.
    """
    allowed = max(SURELY_NOISE, SURELY_SHARE * run.gain)
    if merged - run.after <= allowed:
        return LossCheck(merged, run.after, allowed, run.before)
    exact = losses.of(losses.added_up) if losses.is_rounded else merged
    if exact - run.after > allowed:
        allowed = max(allowed, _own_noise(run, exact, losses))
    if not exact - run.after <= allowed:
        raise NotCertified(
            f"base and update have the held-out loss {exact:.4f}, the trained model had {run.after:.4f}, and "
            f"{run.before:.4f} before training (tolerance {allowed:.4f})",
            hint=TRAIN_AGAIN,
        )
    may_round = MAY_ROUND * run.gain
    if merged - exact > may_round:
        may_round = max(may_round, losses.noise(torch.bfloat16, exact))
    if not merged - exact <= may_round:
        raise NotCertified(
            f"rounding loses what was learned: the merged model's held-out loss is {merged:.4f}, before rounding it is "
            f"{exact:.4f}, and before training it was {run.before:.4f}",
            hint=too_coarse,
        )
    return LossCheck(merged, run.after, max(0.0, exact - run.after) + may_round, run.before)


def _own_noise(run: Recorded, exact: float, losses: Losses) -> float:
    """How far above the run's own loss that of base and update may be, as the run computed in another arithmetic."""
    noise = losses.noise(run.dtype, exact) * (1.0 if run.dtype == torch.float32 else OTHER_ARITHMETIC)
    if not (run.is_qlora or run.is_copy):
        return noise
    noise += MAY_DIFFER_4BIT * run.gain if run.is_qlora else 0.0
    return noise + max(0.0, losses.of(losses.base) - run.before)


def with_other_digits(read: Read, dtype: torch.dtype, seed: int = 0) -> Read:
    """The same tensors with other last digits of `dtype`."""

    def moved(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(crc32(name.encode()) + seed)
        return nudged(read(name).float(), dtype, generator)

    return moved
