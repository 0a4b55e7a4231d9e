"""Detectors of what goes wrong with loss, gradients, routers and experts, and the watchdog that runs them all.

A detector is fed with one step's numbers after the other, and knows neither trainer nor clock nor file. What is normal
is learned from the run itself: its median, and the scatter around it; fixed numbers only say how far is too far.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import dropwhile, pairwise
from operator import add
from statistics import median

import torch

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs.watch.alarms import Alarm, Detector, Kind, Numbers, Run


class NotANumber:
    """The loss, or a group's gradient, is NaN or infinite.

    With float16 the loss's scale is found by trying: there only gradients that stay so for long are a fault.
    """

    PATIENCE_OF_SCALING = 25

    def __init__(self, may_overflow: bool = False) -> None:
        self._patience = self.PATIENCE_OF_SCALING if may_overflow else 1
        self._run: defaultdict[str, Run] = defaultdict(Run)

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        if not math.isfinite(now.loss):
            yield Alarm("nan_loss", "loss", now.step, f"{now.loss}")
        bad = [group for group, norm in now.grad_norms.items() if not math.isfinite(norm)]
        groups = [group for group in bad if group != "all"] or bad
        for group in now.grad_norms:
            run = self._run[group]
            if run.go_on(now.step, group in groups) >= self._patience:
                yield Alarm("nan_gradient", group, run.since, f"norm {now.grad_norms[group]}")


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
            yield Alarm("loss_spike", "loss", self._run.since, f"{now.loss:.3g}, after {middle:.3g} ± {scatter:.2g}")
        if not is_high or lasted > _Lately.SIZE:  # what has lasted so long is how things are now
            self._lately.values.append(now.loss)


class _ByGroup:
    """What a detector remembers of each group's gradient."""

    def __init__(self) -> None:
        self._lately: defaultdict[str, _Lately] = defaultdict(_Lately)
        self._run: defaultdict[str, Run] = defaultdict(Run)

    def _memory(self, now: Numbers) -> Iterator[tuple[str, float, _Lately, Run]]:
        """Every group whose norm is finite, its norm and what is remembered."""
        for group, norm in now.grad_norms.items():
            if math.isfinite(norm):
                yield group, norm, self._lately[group], self._run[group]


class GradientExplosion(_ByGroup):
    """A group's gradient is many times what it was lately, for some steps in a row."""

    PATIENCE = 3
    SCATTERS = 8.0
    RATIO = 20.0

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step; scatter is that of the logarithms, as norms scatter by factors."""
        for group, norm, lately, run in self._memory(now):
            size = math.log(norm) if norm > 0 else -math.inf
            limit = lately.median + max(math.log(self.RATIO), self.SCATTERS * lately.scatter)
            is_high = lately.is_known and size > limit
            lasted = run.go_on(now.step, is_high)
            if lasted >= self.PATIENCE:
                was = math.exp(lately.median)
                yield Alarm("gradient_explosion", group, run.since, f"norm {norm:.3g}, after {was:.3g}")
            if norm > 0 and (not is_high or lasted > _Lately.SIZE):
                lately.values.append(size)


class GradientVanishing(_ByGroup):
    """A group's gradient has vanished compared with what it was, while the loss is still high."""

    PATIENCE = 5
    RATIO = 1e-3
    LOSS_LEFT = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._losses = _Lately()

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        # Gradients that shrink along with the loss have done their work.
        is_learned = self._losses.is_known and now.loss < self.LOSS_LEFT * self._losses.median
        for group, norm, lately, run in self._memory(now):
            was = math.exp(lately.median) if lately.values else 0.0
            is_gone = norm == 0.0 and bool(lately.values)
            is_small = lately.is_known and norm < self.RATIO * was
            if run.go_on(now.step, (is_gone or is_small) and not is_learned) >= self.PATIENCE:
                yield Alarm("gradient_vanishing", group, run.since, f"norm {norm:.3g}, after {was:.3g}")
            if norm > 0 and not is_small:
                lately.values.append(math.log(norm))
        if math.isfinite(now.loss):
            self._losses.values.append(now.loss)


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
            yield Alarm("overfitting", "held-out loss", self._best_step + 1, detail)


class _Lately:
    """The last values, their median and scatter (1.4826 × the median distance from it, as of a bell curve)."""

    SIZE = 60
    ENOUGH = 20

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=self.SIZE)

    @property
    def is_known(self) -> bool:
        return len(self.values) >= self.ENOUGH

    @property
    def median(self) -> float:
        return median(self.values or [0.0])

    @property
    def scatter(self) -> float:
        middle = self.median
        return 1.4826 * median([abs(value - middle) for value in self.values] or [0.0])

    @property
    def recent_median(self) -> float:
        """Of the last ENOUGH alone, as what falls is lower now than it was."""
        return median(list(self.values)[-self.ENOUGH :] or [0.0])

    @property
    def jitter(self) -> float:
        """The scatter from one value to the next: what falls or rises evenly has none."""
        return 1.4826 / math.sqrt(2) * median([abs(after - before) for before, after in pairwise(self.values)] or [0.0])

    @property
    def top(self) -> float:
        """The highest value since the first that was as low as the recent ones: where it all began does not count."""
        middle = self.recent_median
        return max(dropwhile(lambda value: value > middle, self.values), default=-math.inf)


class RouterCollapse:
    """A layer's tokens crowd onto few experts, far from how the base spread them.

    Measured between the base's own profile and the worst there is (every token takes the same K experts): past the
    middle is a collapse, by entropy or by MaxVio, over a window of steps that holds enough rows to tell.
    """

    WINDOW = 20
    PATIENCE = 5
    ROWS_PER_EXPERT = 16
    TOO_FAR = 0.5

    def __init__(self, base: Routing) -> None:
        self._base = base
        self._window = Window(self.WINDOW)
        num_experts = max(base.num_experts, 2)
        self._worst_entropy = math.log(base.num_chosen) / math.log(num_experts)
        self._worst_violation = num_experts / base.num_chosen - 1
        self._run = {layer: Run() for layer in base.layers}

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        if now.routing is None:
            return
        seen, base = self._window.add(now.routing), self._base
        is_known_L = (seen.rows_L >= self.ROWS_PER_EXPERT * seen.num_experts) & (base.rows_L > 0)
        entropy_L, violation_L = seen.entropy_L, seen.max_violation_L
        of_entropy_L = _way(base.entropy_L, entropy_L, self._worst_entropy)
        of_violation_L = _way(base.max_violation_L, violation_L, self._worst_violation)
        is_collapsed_L = is_known_L & (torch.maximum(of_entropy_L, of_violation_L) > self.TOO_FAR)
        for number, (layer, is_collapsed) in enumerate(zip(base.layers, is_collapsed_L.tolist(), strict=True)):
            run = self._run[layer]
            if run.go_on(now.step, is_collapsed) >= self.PATIENCE:
                detail = (
                    f"entropy {entropy_L[number]:.2f} (base {base.entropy_L[number]:.2f}), "
                    f"MaxVio {violation_L[number]:.2f} (base {base.max_violation_L[number]:.2f})"
                )
                yield Alarm("router_collapse", layer, run.since, detail)


def _way(base_L: torch.Tensor, now_L: torch.Tensor, worst: float) -> torch.Tensor:
    """How far along from the base to the worst: 0 to 1; a base with little room left says nothing."""
    room_L = worst - base_L
    return torch.where(room_L.abs() > 0.1 * max(abs(worst), 0.5), (now_L - base_L) / room_L, 0.0)


class DeadExperts:
    """Experts without a token for so long that by the base's own use of them they should have had many."""

    EXPECTED_ROWS = 64.0
    MIN_STEPS = 20

    def __init__(self, base: Routing) -> None:
        self._base = base
        self._quiet_rows_LE = torch.zeros_like(base.load_LE)
        self._last_step_LE = torch.zeros(base.load_LE.shape, dtype=torch.int64)
        self._first_step: int | None = None

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """Check one step."""
        if now.routing is None:
            return
        if self._first_step is None:
            self._first_step = now.step
            self._last_step_LE += now.step - 1
        is_used_LE = now.routing.load_LE > 0
        self._last_step_LE[is_used_LE] = now.step
        self._quiet_rows_LE = torch.where(
            is_used_LE, 0.0, self._quiet_rows_LE + now.routing.rows_L.unsqueeze(1) * self._base.share_LE
        )
        is_long_LE = now.step - self._last_step_LE >= self.MIN_STEPS
        is_dead_LE = is_long_LE & (self._quiet_rows_LE > self.EXPECTED_ROWS)
        for number in is_dead_LE.any(1).nonzero().flatten().tolist():
            dead = is_dead_LE[number].nonzero().flatten().tolist()
            since = int(self._last_step_LE[number, dead].min()) + 1
            named = ", ".join(map(str, dead[:8])) + (f" and {len(dead) - 8} more" if len(dead) > 8 else "")
            word = "expert" if len(dead) == 1 else "experts"
            yield Alarm("dead_experts", self._base.layers[number], since, f"{word} {named} of {is_dead_LE.shape[1]}")


class Window:
    """The sum of the last steps' routing."""

    def __init__(self, num_steps: int) -> None:
        self._steps: deque[Routing] = deque(maxlen=num_steps)

    def add(self, routing: Routing) -> Routing:
        """One step more, and the oldest is forgotten; returns the sum."""
        self._steps.append(routing)
        return reduce(add, self._steps)


class Watchdog:
    """All detectors together; each fault is reported once per kind and place."""

    def __init__(self, base: Routing | None = None, may_overflow: bool = False, watches_loss: bool = True) -> None:
        """`watches_loss` is False for PPO and GRPO, where the size of the loss carries no information."""
        detectors: list[Detector] = [NotANumber(may_overflow)]
        if watches_loss:
            detectors += [LossSpike(), GradientExplosion(), GradientVanishing(), Overfitting()]
        if base is not None and base.layers:
            detectors += [RouterCollapse(base), DeadExperts(base)]
        self._detectors = detectors
        self._reported: set[tuple[Kind, str]] = set()

    def replay(self, earlier: Iterable[Numbers], reported: Iterable[tuple[Kind, str]]) -> None:
        """Feed the steps of a resumed run to the detectors; what was reported then is not reported again."""
        for numbers in earlier:
            for detector in self._detectors:
                list(detector.check(numbers))
        self._reported.update(reported)

    def check(self, now: Numbers) -> list[Alarm]:
        """The new alarms of this step."""
        new = []
        for alarm in (alarm for detector in self._detectors for alarm in detector.check(now)):
            if (alarm.what, alarm.where) not in self._reported:
                self._reported.add((alarm.what, alarm.where))
                new.append(alarm)
        return new
