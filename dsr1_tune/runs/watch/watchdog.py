"""Runs every detector, of which it holds the list, and reports each fault once."""

from __future__ import annotations

from collections.abc import Iterable

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.runs.watch.alarms import Alarm, Detector, Kind, Numbers
from dsr1_tune.runs.watch.detectors import GradientExplosion, GradientVanishing, LossSpike, NotANumber, Overfitting
from dsr1_tune.runs.watch.expert_detectors import DeadExperts, RouterCollapse


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
        for detector in self._detectors:
            for alarm in detector.check(now):
                if (alarm.what, alarm.where) not in self._reported:
                    self._reported.add((alarm.what, alarm.where))
                    new.append(alarm)
        return new
