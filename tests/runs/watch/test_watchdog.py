"""All detectors together: no alarm in a normal run, and each fault reported once."""

from __future__ import annotations

import math
import random

import pytest

from dsr1_tune.runs.watch.alarms import Numbers
from dsr1_tune.runs.watch.watchdog import Watchdog
from tests.runs.watch.conftest import BASE, USUAL, losses, noisy, route


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scatter", [0.05, 0.3])
def test_watchdog_gives_no_alarm_in_a_normal_noisy_run(seed: int, scatter: float) -> None:
    """The loss falls by half under heavy noise, norms scatter by factors with a fat tail, experts drift a little."""
    generator = random.Random(seed)
    watchdog = Watchdog(BASE)
    for step in range(1, 301):
        weights = [weight * (1 + 0.3 * math.sin(step / 50 + number)) for number, weight in enumerate(USUAL)]
        loss = (1.5 + 1.5 * math.exp(-step / 80)) * math.exp(generator.gauss(0, scatter))
        fat = 5.0 if generator.random() < 0.03 else 1.0
        size = {group: fat * math.exp(generator.gauss(0, 0.5)) for group in ("all", "attention", "routed_experts")}
        held_out = 1.6 + 1.5 * math.exp(-step / 80) + generator.gauss(0, 0.005) if step % 25 == 0 else None
        routing = route(weights, 24, seed=1000 * seed + step)
        assert watchdog.check(Numbers(step, loss, size, held_out, routing)) == []


def test_watchdog_reports_each_fault_once_per_kind_and_place() -> None:
    watchdog = Watchdog()
    assert [alarm.what for alarm in watchdog.check(Numbers(1, math.nan))] == ["nan_loss"]
    assert watchdog.check(Numbers(2, math.nan)) == []


def test_watchdog_does_not_report_again_after_a_resume() -> None:
    calm, high = losses(*noisy(2.0, 0.1, 40)), [Numbers(step, 9.0) for step in range(41, 50)]
    watchdog = Watchdog()
    watchdog.replay(calm, [])
    assert [alarm.since_step for numbers in high for alarm in watchdog.check(numbers)] == [41]
    watchdog = Watchdog()
    watchdog.replay(calm, [("loss_spike", "loss")])
    assert [watchdog.check(numbers) for numbers in high] == [[]] * 9
