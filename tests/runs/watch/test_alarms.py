"""Every detector alone: fed with numbers it should be alarmed by, and with those of a normal, noisy run."""

from __future__ import annotations

from typing import Any, get_args

from dsr1_tune.runs.watch.alarms import TEXTS, Alarm, Kind

# --- experts ---------------------------------------------------------------------------------------------------------


# --- together --------------------------------------------------------------------------------------------------------


def test_alarm_of_every_kind_says_what_it_is_and_what_to_try() -> None:
    assert set(TEXTS.texts) == {f"{group}_{kind}" for group in ("kind", "try") for kind in get_args(Kind)}
    advice = TEXTS.say("try_loss_spike", "en")
    alarm = Alarm("loss_spike", "loss", 41, "9 after 2")
    assert all(part in str(alarm) for part in ("jumped", "loss", "41", "9 after 2", "learning_rate"))
    as_json: dict[str, Any] = alarm.as_json()
    assert as_json == {
        "what": "loss_spike",
        "where": "loss",
        "since_step": 41,
        "detail": "9 after 2",
        "try": advice,
    }
