"""All detectors together, so that each fault is reported once."""

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
