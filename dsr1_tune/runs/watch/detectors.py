"""Detectors of what goes wrong with loss and gradients, each fed with one step's numbers after the other.

A detector knows neither trainer nor clock nor file. What is normal is learned from the run itself: its median, and the
scatter around it; fixed numbers only say how far is too far.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import dropwhile, pairwise
from statistics import median

from dsr1_tune.runs.watch.alarms import Alarm, Numbers, Run, alarm


class NotANumber:
    """The loss, or a group's gradient, is NaN or infinite.

    With float16 the loss's scale is found by trying: there only gradients that stay so for long are a fault.
    """

    PATIENCE_OF_SCALING = 25

    def __init__(self, may_overflow: bool = False) -> None:
        self._patience = self.PATIENCE_OF_SCALING if may_overflow else 1
        self._run: dict[str, Run] = {}

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        if not math.isfinite(now.loss):
            yield alarm("nan_loss", "loss", now.step, f"{now.loss}")
        bad = [group for group, norm in now.grad_norms.items() if not math.isfinite(norm)]
        groups = [group for group in bad if group != "all"] or bad
        for group in now.grad_norms:
            run = self._run.setdefault(group, Run())
            if run.go_on(now.step, group in groups) >= self._patience:
                yield alarm("nan_gradient", group, run.since, f"norm {now.grad_norms[group]}")


class LossSpike:
    """The loss stands far above everything it was lately, for some steps in a row.

    A single bad batch is no fault. Far is: above the median by many times the scatter and by half, and higher than any
    loss since it first came down to where it is (batches of like length make losses that go round).
    """

    PATIENCE = 3
    SCATTERS = 8.0
    RATIO = 1.5

    def __init__(self) -> None:
        self._lately = _Lately()
        self._run = Run()

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        if not math.isfinite(now.loss):
            return
        middle, scatter, top = self._lately.recent_median, self._lately.jitter, self._lately.top
        # A loss near zero doubles easily.
        is_high = (
            self._lately.is_known and now.loss > max(middle + self.SCATTERS * scatter, self.RATIO * middle, top) + 0.05
        )
        lasted = self._run.go_on(now.step, is_high)
        if lasted >= self.PATIENCE:
            yield alarm("loss_spike", "loss", self._run.since, f"{now.loss:.3g}, after {middle:.3g} ± {scatter:.2g}")
        if not is_high or lasted > _Lately.SIZE:  # what has lasted so long is how things are now
            self._lately.add(now.loss)


class GradientExplosion:
    """A group's gradient is many times what it was lately, for some steps in a row."""

    PATIENCE = 3
    SCATTERS = 8.0
    RATIO = 20.0

    def __init__(self) -> None:
        self._lately: dict[str, _Lately] = {}
        self._run: dict[str, Run] = {}

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step; scatter is that of the logarithms, as norms scatter by factors."""
        for group, norm in _finite(now.grad_norms):
            lately, run = self._lately.setdefault(group, _Lately()), self._run.setdefault(group, Run())
            size = math.log(norm) if norm > 0 else -math.inf
            limit = lately.median + max(math.log(self.RATIO), self.SCATTERS * lately.scatter)
            is_high = lately.is_known and size > limit
            lasted = run.go_on(now.step, is_high)
            if lasted >= self.PATIENCE:
                was = math.exp(lately.median)
                yield alarm("gradient_explosion", group, run.since, f"norm {norm:.3g}, after {was:.3g}")
            if norm > 0 and (not is_high or lasted > _Lately.SIZE):
                lately.add(size)


class GradientVanishing:
    """A group's gradient has vanished compared with what it was, while the loss is still high."""

    PATIENCE = 5
    RATIO = 1e-3
    LOSS_LEFT = 0.5

    def __init__(self) -> None:
        self._lately: dict[str, _Lately] = {}
        self._run: dict[str, Run] = {}
        self._losses = _Lately()

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        # Gradients that shrink along with the loss have done their work.
        is_learned = self._losses.is_known and now.loss < self.LOSS_LEFT * self._losses.median
        for group, norm in _finite(now.grad_norms):
            lately, run = self._lately.setdefault(group, _Lately()), self._run.setdefault(group, Run())
            was = math.exp(lately.median) if lately.size else 0.0
            is_gone = norm == 0.0 and lately.size > 0
            is_small = lately.is_known and norm < self.RATIO * was
            if run.go_on(now.step, (is_gone or is_small) and not is_learned) >= self.PATIENCE:
                yield alarm("gradient_vanishing", group, run.since, f"norm {norm:.3g}, after {was:.3g}")
            if norm > 0 and not is_small:
                lately.add(math.log(norm))
        if math.isfinite(now.loss):
            self._losses.add(now.loss)


class Overfitting:
    """The held-out loss stands above its best for some evaluations in a row, while the training loss has fallen."""

    PATIENCE = 2
    RISE = 0.02

    def __init__(self) -> None:
        self._lately: deque[float] = deque(maxlen=20)
        self._best, self._best_step, self._train_at_best = math.inf, 0, math.inf
        self._run = Run()

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step; steps without an evaluation give no alarm."""
        if math.isfinite(now.loss):
            self._lately.append(now.loss)
        if now.eval_loss is None or not math.isfinite(now.eval_loss) or not self._lately:
            return
        train = median(self._lately)
        if now.eval_loss < self._best:
            self._best, self._best_step, self._train_at_best = now.eval_loss, now.step, train
        is_worse = now.eval_loss > self._best * (1 + self.RISE) and train < self._train_at_best
        if self._run.go_on(now.step, is_worse) >= self.PATIENCE:
            detail = f"held-out loss {now.eval_loss:.4f}, at its best {self._best:.4f} after step {self._best_step}"
            yield alarm("overfitting", "held-out loss", self._best_step + 1, detail)


# --- what detectors are made of ---------------------------------------------------------------------------------------


class _Lately:
    """The last values, their median and scatter (1.4826 × the median distance from it, as of a bell curve)."""

    SIZE = 60
    ENOUGH = 20

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=self.SIZE)

    @property
    def size(self) -> int:
        return len(self._values)

    @property
    def is_known(self) -> bool:
        return len(self._values) >= self.ENOUGH

    @property
    def median(self) -> float:
        return median(self._values) if self._values else 0.0

    @property
    def scatter(self) -> float:
        middle = self.median
        return 1.4826 * median(abs(value - middle) for value in self._values) if self._values else 0.0

    @property
    def recent_median(self) -> float:
        """Of the last ENOUGH alone, as what falls is lower now than it was."""
        recent = list(self._values)[-self.ENOUGH :]
        return median(recent) if recent else 0.0

    @property
    def jitter(self) -> float:
        """The scatter from one value to the next: what falls or rises evenly has none."""
        values = list(self._values)
        steps = [abs(after - before) for before, after in pairwise(values)]
        return 1.4826 / math.sqrt(2) * median(steps) if steps else 0.0

    @property
    def top(self) -> float:
        """The highest value since the first that was as low as the recent ones: where it all began does not count."""
        middle = self.recent_median
        return max(dropwhile(lambda value: value > middle, self._values), default=-math.inf)

    def add(self, value: float) -> None:
        self._values.append(value)


def _finite(norms: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((group, norm) for group, norm in norms.items() if math.isfinite(norm))
