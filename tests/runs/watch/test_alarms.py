"""What an alarm says, and that its advice is true of the run."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from dsr1_tune.config import Base, DpoRun, Esft, EsftRun, FullRun, LoraRun, Router, TuneRun
from dsr1_tune.runs.watch.alarms import TEXTS, Alarm, Kind, advice_in, advise

KINDS: tuple[Kind, ...] = get_args(Kind)


def test_alarm_of_every_kind_says_what_it_is_and_what_to_try() -> None:
    runs: list[TuneRun] = [LoraRun(router=Router(mode=mode)) for mode in ("frozen", "train", "aux_loss", "bias")]
    runs.append(LoraRun(base=Base(dtype="bfloat16")))
    pieces = {name for run in runs for kind in KINDS for name in advise(kind, run)}
    assert set(TEXTS.texts) == {*(f"kind_{kind}" for kind in KINDS), *(f"try_{name}" for name in pieces)}
    alarm = Alarm("loss_spike", "loss", 41, "9 after 2", advise("loss_spike", LoraRun()))
    assert all(part in str(alarm) for part in ("jumped", "loss", "41", "9 after 2", "learning_rate"))
    as_json: dict[str, Any] = alarm.as_json()
    assert as_json == {
        "what": "loss_spike",
        "where": "loss",
        "since_step": 41,
        "detail": "9 after 2",
        "advice": ("lower_rate", "raise_warmup", "look_at_records"),
        "try": "lower schedule.learning_rate; raise schedule.warmup_share; look at the records of these steps",
    }


def test_alarm_without_advice_says_nothing_of_trying() -> None:
    assert str(Alarm("nan_loss", "loss", 3, "nan")).endswith("(loss, since step 3): nan")


@pytest.mark.parametrize(
    ("told", "advice"),
    [
        ({"what": "loss_spike", "try": "x"}, ("lower_rate", "raise_warmup", "look_at_records")),
        ({"what": "loss_spike", "advice": ["lower_rate"]}, ("lower_rate",)),
        ({"what": "loss_spike", "advice": []}, ()),
        ({"what": "of tomorrow", "try": "x"}, ()),
        ({"what": ["loss_spike"]}, ()),
    ],
)
def test_advice_of_an_alarm_in_a_file(told: dict[str, Any], advice: tuple[str, ...]) -> None:
    assert advice_in(told) == advice


@pytest.mark.parametrize(
    ("what", "run", "has", "has_not"),
    [
        ("router_collapse", LoraRun(), "lower_rate", "freeze_routers"),
        ("router_collapse", LoraRun(router=Router(mode="train")), "freeze_routers", "balance"),
        ("dead_experts", LoraRun(), "balance", "raise_bias_rate"),
        ("dead_experts", LoraRun(router=Router(mode="bias")), "raise_bias_rate", "balance"),
        ("dead_experts", LoraRun(router=Router(mode="aux_loss")), "raise_aux_loss", "balance"),
        ("dead_experts", DpoRun(), "lower_rate", "balance"),  # alignment leaves routers as they are
        ("overfitting", LoraRun(), "lower_rank", "raise_rank"),
        ("overfitting", FullRun(), "lower_epochs", "lower_rank"),
        ("overfitting", DpoRun(method="full"), "lower_epochs", "lower_rank"),
        ("gradient_vanishing", EsftRun(), "leave_out", "raise_rank"),
        ("gradient_vanishing", EsftRun(esft=Esft(method="lora")), "raise_rank", "lower_rate"),
        ("gradient_vanishing", LoraRun(base=Base(dtype="float32")), "raise_rank", "take_float32"),
        ("nan_loss", LoraRun(base=Base(dtype="bfloat16")), "take_float32", "leave_float16"),
    ],
)
def test_advice_is_true_of_the_run(what: Kind, run: TuneRun, has: str, has_not: str) -> None:
    assert has in advise(what, run) and has_not not in advise(what, run)
