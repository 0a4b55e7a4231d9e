"""What can go wrong while training, each told by a small detector that is fed one step's numbers after the other.

A detector knows neither trainer nor clock nor file. What is normal is learned from the run itself (its median, and the
scatter around it) or from the base's own routing before training; fixed numbers only say how far is too far.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal, Protocol

import torch

from dsr1_tune.moe.monitor import Routing

Kind = Literal[
    "nan_loss",
    "nan_gradient",
    "loss_spike",
    "gradient_explosion",
    "gradient_vanishing",
    "router_collapse",
    "dead_experts",
    "overfitting",
]

WHAT: dict[Kind, str] = {
    "nan_loss": "the loss is not a number",
    "nan_gradient": "gradients are not numbers",
    "loss_spike": "the loss has jumped",
    "gradient_explosion": "gradients have exploded",
    "gradient_vanishing": "gradients have vanished",
    "router_collapse": "the router has collapsed onto few experts",
    "dead_experts": "experts that the base used get no tokens any more",
    "overfitting": "the held-out loss rises while the training loss falls",
}
TRY: dict[Kind, str] = {
    "nan_loss": "lower schedule.learning_rate; with base.dtype=float16 try bfloat16 or float32",
    "nan_gradient": "lower schedule.learning_rate; with base.dtype=float16 try bfloat16 or float32",
    "loss_spike": "lower schedule.learning_rate or raise schedule.warmup_share; look at the records of these steps",
    "gradient_explosion": "lower schedule.learning_rate or schedule.max_grad_norm, or raise schedule.warmup_share",
    "gradient_vanishing": "is this group meant to be trained? Raise its rank or alpha; or base.dtype=float32",
    "router_collapse": "router.mode=frozen, a lower schedule.learning_rate, or more varied data",
    "dead_experts": "router.mode=frozen, or balance with router.mode=bias or aux_loss; a lower schedule.learning_rate",
    "overfitting": "fewer schedule.epochs, a lower adapter.rank, or more data; the best checkpoint is an earlier one",
}


@dataclass(frozen=True)
class Alarm:
    """What is wrong, where, since which step, by which numbers, and what to try."""

    what: Kind
    where: str
    since_step: int
    detail: str
    try_: str

    @property
    def last_good_step(self) -> int:
        """A checkpoint after more steps than that may hold the fault: a bad loss tells of the weights before it."""
        return self.since_step - (2 if self.what in ("nan_loss", "nan_gradient", "loss_spike") else 1)

    def as_json(self) -> dict[str, Any]:
        """For the log and the manifest."""
        told = asdict(self)
        told["try"] = told.pop("try_")
        return told

    def __str__(self) -> str:
        return f"{WHAT[self.what]} ({self.where}, since step {self.since_step}): {self.detail}. Try: {self.try_}"


@dataclass(frozen=True)
class Numbers:
    """What one optimizer step came to; `routing` are this step's own counts."""

    step: int
    loss: float
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    """By group; "all" is the whole gradient's."""
    eval_loss: float | None = None
    routing: Routing | None = None


class Detector(Protocol):
    """Looks at one step after the other, in order, and says what is wrong."""

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """The alarms of this step; the same fault may be named at every step that it lasts."""


class Watchdog:
    """All detectors together; each fault is reported once per kind and place."""

    def __init__(self, base: Routing | None = None, may_overflow: bool = False) -> None:
        detectors: list[Detector] = [
            NotANumber(may_overflow),
            LossSpike(),
            GradientExplosion(),
            GradientVanishing(),
            Overfitting(),
        ]
        if base is not None and base.layers:
            detectors += [RouterCollapse(base), DeadExperts(base)]
        self._detectors = detectors
        self._said: set[tuple[Kind, str]] = set()

    def replay(self, earlier: Iterable[Numbers], said: Iterable[tuple[Kind, str]]) -> None:
        """Live through the steps of a run that is gone on with; what was reported then is not reported again."""
        for numbers in earlier:
            for detector in self._detectors:
                list(detector.look(numbers))
        self._said.update(said)

    def look(self, now: Numbers) -> list[Alarm]:
        """What is new in this step."""
        new = []
        for detector in self._detectors:
            for alarm in detector.look(now):
                if (alarm.what, alarm.where) not in self._said:
                    self._said.add((alarm.what, alarm.where))
                    new.append(alarm)
        return new


def _alarm(what: Kind, where: str, since_step: int, detail: str) -> Alarm:
    return Alarm(what, where, since_step, detail, TRY[what])


class NotANumber:
    """The loss, or a group's gradient, is NaN or infinite.

    With float16 the loss's scale is found by trying: there only gradients that stay so for long are a fault.
    """

    PATIENCE_OF_SCALING = 25

    def __init__(self, may_overflow: bool = False) -> None:
        self._patience = self.PATIENCE_OF_SCALING if may_overflow else 1
        self._run: dict[str, _Run] = {}

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step."""
        if not math.isfinite(now.loss):
            yield _alarm("nan_loss", "loss", now.step, f"{now.loss}")
        bad = [group for group, norm in now.grad_norms.items() if not math.isfinite(norm)]
        groups = [group for group in bad if group != "all"] or bad
        for group in now.grad_norms:
            run = self._run.setdefault(group, _Run())
            if run.go_on(now.step, group in groups) >= self._patience:
                yield _alarm("nan_gradient", group, run.since, f"norm {now.grad_norms[group]}")


class LossSpike:
    """The loss stands far above everything it was lately, for some steps in a row.

    A single bad batch is no fault, nor is a batch of short answers. Far is: above the median by many times the scatter
    and by a quarter, and higher than any loss lately (batches of like length make losses that go round).
    """

    PATIENCE = 3
    SCATTERS = 8.0
    RATIO = 1.25

    def __init__(self) -> None:
        self._lately = _Lately()
        self._run = _Run()

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step."""
        if not math.isfinite(now.loss):
            return
        middle, scatter, top = self._lately.recent_median, self._lately.jitter, self._lately.top
        # A loss that is nearly nought doubles at nothing.
        is_high = (
            self._lately.is_known and now.loss > max(middle + self.SCATTERS * scatter, self.RATIO * middle, top) + 0.05
        )
        lasted = self._run.go_on(now.step, is_high)
        if lasted >= self.PATIENCE:
            yield _alarm("loss_spike", "loss", self._run.since, f"{now.loss:.3g}, after {middle:.3g} ± {scatter:.2g}")
        if not is_high or lasted > _Lately.SIZE:  # what has lasted so long is how things are now
            self._lately.add(now.loss)


class GradientExplosion:
    """A group's gradient is many times what it was lately, for some steps in a row."""

    PATIENCE = 3
    SCATTERS = 8.0
    RATIO = 20.0

    def __init__(self) -> None:
        self._lately: dict[str, _Lately] = {}
        self._run: dict[str, _Run] = {}

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step; scatter is that of the logarithms, as norms scatter by factors."""
        for group, norm in _finite(now.grad_norms):
            lately, run = self._lately.setdefault(group, _Lately()), self._run.setdefault(group, _Run())
            size = math.log(norm) if norm > 0 else -math.inf
            limit = lately.median + max(math.log(self.RATIO), self.SCATTERS * lately.scatter)
            is_high = lately.is_known and size > limit
            lasted = run.go_on(now.step, is_high)
            if lasted >= self.PATIENCE:
                was = math.exp(lately.median)
                yield _alarm("gradient_explosion", group, run.since, f"norm {norm:.3g}, after {was:.3g}")
            if norm > 0 and (not is_high or lasted > _Lately.SIZE):
                lately.add(size)


class GradientVanishing:
    """A group's gradient has become nothing beside what it was, though there is still something to be learned."""

    PATIENCE = 5
    RATIO = 1e-3
    LOSS_LEFT = 0.5

    def __init__(self) -> None:
        self._lately: dict[str, _Lately] = {}
        self._run: dict[str, _Run] = {}
        self._losses = _Lately()

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step."""
        # Gradients that shrink along with the loss have done their work.
        is_learned = self._losses.is_known and now.loss < self.LOSS_LEFT * self._losses.median
        for group, norm in _finite(now.grad_norms):
            lately, run = self._lately.setdefault(group, _Lately()), self._run.setdefault(group, _Run())
            was = math.exp(lately.median) if lately.size else 0.0
            is_gone = norm == 0.0 and lately.size > 0
            is_small = lately.is_known and norm < self.RATIO * was
            if run.go_on(now.step, (is_gone or is_small) and not is_learned) >= self.PATIENCE:
                yield _alarm("gradient_vanishing", group, run.since, f"norm {norm:.3g}, after {was:.3g}")
            if norm > 0 and not is_small:
                lately.add(math.log(norm))
        if math.isfinite(now.loss):
            self._losses.add(now.loss)


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
        self._run = {layer: _Run() for layer in base.layers}

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step."""
        if now.routing is None:
            return
        self._window.add(now.routing)
        seen, base = self._window.sum, self._base
        is_known_L = (seen.rows_L >= self.ROWS_PER_EXPERT * seen.num_experts) & (base.rows_L > 0)
        entropy_L, violation_L = seen.entropy_L, seen.max_violation_L
        of_entropy_L = _way(base.entropy_L, entropy_L, torch.full_like(entropy_L, self._worst_entropy))
        of_violation_L = _way(base.max_violation_L, violation_L, torch.full_like(violation_L, self._worst_violation))
        is_collapsed_L = is_known_L & (torch.maximum(of_entropy_L, of_violation_L) > self.TOO_FAR)
        for number, (layer, is_collapsed) in enumerate(zip(base.layers, is_collapsed_L.tolist(), strict=True)):
            run = self._run[layer]
            if run.go_on(now.step, is_collapsed) >= self.PATIENCE:
                detail = (
                    f"entropy {entropy_L[number]:.2f} (base {base.entropy_L[number]:.2f}), "
                    f"MaxVio {violation_L[number]:.2f} (base {base.max_violation_L[number]:.2f})"
                )
                yield _alarm("router_collapse", layer, run.since, detail)


def _way(base_L: torch.Tensor, now_L: torch.Tensor, worst_L: torch.Tensor) -> torch.Tensor:
    """How far along from the base to the worst: 0 to 1; a base with little room left says nothing."""
    room_L = worst_L - base_L
    return torch.where(room_L.abs() > 0.1 * worst_L.abs().clamp(min=0.5), (now_L - base_L) / room_L, 0.0)


class DeadExperts:
    """Experts without a token for so long that by the base's own use of them they should have had many."""

    EXPECTED_ROWS = 64.0
    MIN_STEPS = 20

    def __init__(self, base: Routing) -> None:
        self._base = base
        self._quiet_rows_LE = torch.zeros_like(base.load_LE)
        self._last_step_LE = torch.zeros(base.load_LE.shape, dtype=torch.int64)
        self._first_step: int | None = None

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step."""
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
            yield _alarm("dead_experts", self._base.layers[number], since, f"{word} {named} of {is_dead_LE.shape[1]}")


class Overfitting:
    """The held-out loss stands above its best for some evaluations in a row, while the training loss has fallen."""

    PATIENCE = 2
    RISE = 0.02

    def __init__(self) -> None:
        self._lately: deque[float] = deque(maxlen=20)
        self._best, self._best_step, self._train_at_best = math.inf, 0, math.inf
        self._run = _Run()

    def look(self, now: Numbers) -> Iterator[Alarm]:
        """Judge one step; nothing is said at steps without an evaluation."""
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
            yield _alarm("overfitting", "held-out loss", self._best_step + 1, detail)


# --- what detectors are made of --------------------------------------------------------------------------------------


class Window:
    """The sum of the last steps' routing."""

    def __init__(self, num_steps: int) -> None:
        self._steps: deque[Routing] = deque(maxlen=num_steps)
        self._sum: Routing | None = None

    @property
    def sum(self) -> Routing:
        """All of them together; ask only when something was added."""
        assert self._sum is not None
        return self._sum

    def add(self, routing: Routing) -> None:
        """One step more; the oldest is forgotten."""
        if self._sum is None or len(self._steps) < (self._steps.maxlen or 0):
            self._sum = routing if self._sum is None else self._sum + routing
        else:
            self._sum = self._sum + routing - self._steps[0]
        self._steps.append(routing)


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
        return max(self._values, default=-math.inf)

    def add(self, value: float) -> None:
        self._values.append(value)


class _Run:
    """How many looks in a row have been bad, and since which step."""

    def __init__(self) -> None:
        self.since = 0
        self._length = 0

    def go_on(self, step: int, is_bad: bool) -> int:
        if is_bad and self._length == 0:
            self.since = step
        self._length = self._length + 1 if is_bad else 0
        return self._length


def _finite(norms: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((group, norm) for group, norm in norms.items() if math.isfinite(norm))
