"""The detectors of collapsed routers and dead experts."""

from __future__ import annotations

from dsr1_tune.runs.watch.expert_detectors import DeadExperts, RouterCollapse
from tests.runs.watch.conftest import BASE, NUM_EXPERTS, USUAL, first_alarm, route, routed


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
