"""Every detector of loss and gradients alone: with faults, and with normal noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from dsr1_tune.runs.watch.alarms import Alarm, Numbers
from dsr1_tune.runs.watch.detectors import (
    DeadExperts,
    GradientExplosion,
    GradientVanishing,
    LossSpike,
    NotANumber,
    Overfitting,
    RouterCollapse,
    Watchdog,
)
from tests.runs.watch.conftest import BASE, NUM_EXPERTS, USUAL, first_alarm, losses, noisy, norms, route, routed


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_not_a_number_of_the_loss(loss: float) -> None:
    found = first_alarm(NotANumber(), losses(2.0, 2.0, loss))
    assert found is not None
    step, alarm = found
    assert (step, alarm.what, alarm.where, alarm.since_step) == (3, "nan_loss", "loss", 3)
    assert alarm.last_good_step == 1  # the loss of step 3 is that of the weights after step 2


def test_not_a_number_of_a_gradient_is_placed_by_group() -> None:
    steps = norms(all=[1.0, math.nan], attention=[1.0, 1.0], routed_experts=[1.0, math.nan])
    alarms = [alarm for numbers in steps for alarm in NotANumber().check(numbers)]
    assert [(alarm.what, alarm.where) for alarm in alarms] == [("nan_gradient", "routed_experts")]


def test_not_a_number_of_the_whole_gradient_is_named_where_no_group_is_known() -> None:
    found = first_alarm(NotANumber(), norms(all=[1.0, math.inf]))
    assert found is not None and found[1].where == "all"


def test_not_a_number_lets_float16_overflow_for_some_steps() -> None:
    infinite = norms(all=[math.inf] * 24 + [1.0] * 5)
    assert first_alarm(NotANumber(may_overflow=True), infinite) is None
    found = first_alarm(NotANumber(may_overflow=True), norms(all=[math.inf] * 40))
    assert found is not None and (found[0], found[1].since_step) == (25, 1)


def test_loss_spike_of_a_loss_that_stays_high() -> None:
    found = first_alarm(LossSpike(), losses(*noisy(2.0, 0.1, 40), *noisy(6.0, 0.1, 10)))
    assert found is not None
    step, alarm = found
    assert (step, alarm.what, alarm.since_step) == (43, "loss_spike", 41)


@pytest.mark.parametrize("height", [6.0, 1e6])
def test_loss_spike_ignores_single_bad_batches(height: float) -> None:
    curve = noisy(2.0, 0.1, 60)
    curve[30] = curve[31] = curve[40] = height
    assert first_alarm(LossSpike(), losses(*curve)) is None


def test_gradient_explosion_of_a_group() -> None:
    calm = noisy(1.0, 0.5, 30)
    steps = norms(all=calm + [200.0] * 5, attention=calm + [1.0] * 5, routed_experts=calm + [200.0] * 5)
    assert first_alarm(GradientExplosion(), steps[:-3]) is None
    explosion = GradientExplosion()
    alarms = {alarm.where: alarm for numbers in steps for alarm in explosion.check(numbers)}
    assert set(alarms) == {"all", "routed_experts"}
    assert alarms["routed_experts"].since_step == 31


@pytest.mark.parametrize("left", [0.0, 1e-5])
def test_gradient_vanishing_of_a_group(left: float) -> None:
    calm = noisy(1.0, 0.5, 30)
    vanishing = GradientVanishing()
    steps = norms(attention=calm + [1.0] * 8, shared_experts=calm + [left] * 8)
    alarms = [alarm for numbers in steps for alarm in vanishing.check(numbers)]
    assert {(alarm.what, alarm.where, alarm.since_step) for alarm in alarms} == {
        ("gradient_vanishing", "shared_experts", 31)
    }


def test_gradient_vanishing_ignores_gradients_that_shrink_with_the_loss() -> None:
    steps = [Numbers(step, 2.0 * 0.8**step, {"all": 0.7**step}) for step in range(1, 80)]
    assert first_alarm(GradientVanishing(), steps) is None


def test_overfitting_needs_two_worse_evaluations_and_a_falling_training_loss() -> None:
    def run(train: Callable[[int], float], held_out: dict[int, float]) -> tuple[int, Alarm] | None:
        return first_alarm(Overfitting(), [Numbers(s, train(s), eval_loss=held_out.get(s)) for s in range(1, 61)])

    turning = {10: 2.0, 20: 1.8, 30: 1.75, 40: 1.9, 50: 2.1, 60: 2.4}
    found = run(lambda step: 2.0 - step / 40, turning)
    assert found is not None
    assert (found[0], found[1].what, found[1].since_step, found[1].last_good_step) == (50, "overfitting", 31, 30)
    assert run(lambda step: 2.0, turning) is None  # the training loss does not fall
    assert run(lambda step: 2.0 - step / 40, {10: 2.0, 20: 1.8, 30: 1.9, 40: 1.7, 50: 1.75, 60: 1.69}) is None


def test_loss_spike_ignores_lengths_that_go_round() -> None:
    """Batches of like length come from long to short again and again: short answers have the higher loss."""
    generator = random.Random(0)
    for sign in (1, -1):
        curve = [1.6 + sign * 0.9 * ((step % 31) / 31 - 0.5) + generator.gauss(0, 0.05) for step in range(200)]
        assert first_alarm(LossSpike(), losses(*curve)) is None


def test_loss_spike_after_a_steep_fall_is_seen() -> None:
    fall = [6.0 - step / 30 + 0.05 * (step % 3) for step in range(80)]
    found = first_alarm(LossSpike(), losses(*fall, 5.7, 5.7, 5.7, 5.7))
    assert found is not None and found[1].since_step == 81
    assert first_alarm(LossSpike(), losses(*fall)) is None


def test_router_collapse_onto_few_experts() -> None:
    crowded = [1000.0] * 3 + [1.0] * (NUM_EXPERTS - 3)
    found = first_alarm(RouterCollapse(BASE), routed(USUAL, 30) + routed(crowded, 40, first_step=31))
    assert found is not None
    step, alarm = found
    assert (alarm.what, alarm.where) == ("router_collapse", "layer")
    assert 31 <= alarm.since_step <= 51 and step - alarm.since_step == RouterCollapse.PATIENCE - 1
    assert "base" in alarm.detail


def test_router_collapse_onto_one_expert() -> None:
    greedy = [5000.0, *USUAL[1:]]
    found = first_alarm(RouterCollapse(BASE), routed(greedy, 40))
    assert found is not None and found[1].what == "router_collapse"


def test_router_collapse_is_measured_against_a_crowded_base() -> None:
    crowded = [60.0] * 4 + [1.0] * (NUM_EXPERTS - 4)
    base = route(crowded, 2000, seed=5)
    assert float(base.entropy_L) < 0.85
    assert first_alarm(RouterCollapse(base), routed(crowded, 60)) is None


def test_router_collapse_needs_enough_tokens() -> None:
    crowded = [1000.0] * 2 + [1.0] * (NUM_EXPERTS - 2)
    assert first_alarm(RouterCollapse(BASE), routed(crowded, 60, num_tokens=2)) is None


def test_dead_experts_names_an_expert_that_dies() -> None:
    without = list(USUAL)
    without[5] = without[7] = 0.0
    found = first_alarm(DeadExperts(BASE), routed(USUAL, 10) + routed(without, 60, first_step=11))
    assert found is not None
    step, alarm = found
    assert (alarm.what, alarm.where) == ("dead_experts", "layer")
    assert "5, 7" in alarm.detail and 9 <= alarm.since_step <= 11
    assert step >= 11 + DeadExperts.MIN_STEPS - 1


def test_dead_experts_ignores_an_expert_that_the_base_did_not_use() -> None:
    without = list(USUAL)
    without[5] = 0.0
    base = route(without, 2000, seed=3)
    assert first_alarm(DeadExperts(base), routed(without, 100)) is None


def test_dead_experts_gives_a_rare_expert_time() -> None:
    rare = [0.01, *USUAL[1:]]
    base = route(rare, 20_000, seed=3)
    assert first_alarm(DeadExperts(base), routed(rare, 100)) is None


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
