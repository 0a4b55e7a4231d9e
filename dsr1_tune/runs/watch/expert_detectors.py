"""Detectors of what goes wrong with routers and experts, measured against the base's own profile before training."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs.watch.alarms import Alarm, Numbers, Run, alarm


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
                yield alarm("router_collapse", layer, run.since, detail)


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
            yield alarm("dead_experts", self._base.layers[number], since, f"{word} {named} of {is_dead_LE.shape[1]}")


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
