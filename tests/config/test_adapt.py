"""Settings of adapt."""

from __future__ import annotations

from dsr1_tune.config import AdaptRun


def test_adapt_memory_may_be_given_in_units() -> None:
    assert AdaptRun.model_validate({"memory": "24GiB"}).memory == 24
    assert AdaptRun.model_validate({"memory": "512 MiB"}).memory == 0.5
    assert AdaptRun.model_validate({"gates": {"min_agreement": 0.9}}).gates.max_loss_increase == 0.02
    assert AdaptRun.model_validate({"gates": {"min_agreement": None}}).gates.min_agreement is None
