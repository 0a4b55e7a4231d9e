"""What is measured of answers: equal to a plain slow computation, and counted as it says."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsr1_tune.align.preference.log_probs import log_probs
from dsr1_tune.align.preference.metrics import HeldOutFeedback, HeldOutPairs, Said, as_table, compared
from dsr1_tune.runs import evaluate


def test_log_probs_are_those_of_one_answer_at_a_time(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    asked = [
        (
            [draw.randrange(258) for _ in range(draw.randint(1, 30))],
            [draw.randrange(258) for _ in range(number % 9 + 1)],
        )
        for number in range(23)
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).train()
    monkeypatch.setattr(evaluate, "MAX_BATCH_TOKENS", 90)
    counted: list[int] = []
    found = log_probs(model, asked, 1, counted.append)
    assert model.training and sum(counted) == 23 and len(counted) > 3
    model.eval()
    for (prompt, answer), value in zip(asked, found, strict=True):
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *answer]])).logits[0]
        told = logits_TV.double().log_softmax(-1)
        plain = sum(float(told[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
        assert value == pytest.approx(plain, rel=1e-5)


def said(*numbers: tuple[float, int]) -> tuple[Said, ...]:
    return tuple(Said(*number) for number in numbers)


BEFORE = HeldOutPairs(said((-10, 10), (-9, 3), (-4, 2)), said((-12, 10), (-8, 4), (-6, 3)))
AFTER = HeldOutPairs(said((-8, 10), (-9, 3), (-4, 2)), said((-16, 10), (-10, 4), (-5, 3)))


def test_pairs_are_counted_as_a_whole_and_per_token() -> None:
    # Per token: -1 > -1.2; -3 < -2; -2 = -2, a tie.
    assert BEFORE.accuracy == pytest.approx(1.5 / 3) and BEFORE.accuracy_by_sum == pytest.approx(2 / 3)
    assert BEFORE.length_accuracy == pytest.approx(0.5 / 3)
    assert BEFORE.loss == pytest.approx(23 / 15) and (BEFORE.num_pairs, BEFORE.num_tokens) == (3, 32)
    assert AFTER.margins(BEFORE, 0.5) == pytest.approx([3.0, 1.0, -0.5])
    assert AFTER.reward_accuracy(BEFORE) == pytest.approx(2 / 3)
    assert AFTER.reward_margin(BEFORE, 0.5) == pytest.approx(3.5 / 3)
    plain = sum(-math.log(1 / (1 + math.exp(-margin))) for margin in (3.0, 1.0, -0.5)) / 3
    assert AFTER.preference_loss(BEFORE, 0.5) == pytest.approx(plain)
    assert BEFORE.preference_loss(BEFORE, 0.5) == pytest.approx(math.log(2))
    told = replace(BEFORE, differs=("safety", "", "tone")).by_difference()
    assert {name: one.accuracy for name, one in told.items()} == {"safety": 1.0, "tone": 0.5}


def test_feedback_is_counted_over_all_ways_to_compare() -> None:
    is_good = (True, False, True, False)
    before = HeldOutFeedback(said((-1, 1), (-2, 1), (-6, 2), (-8, 4)), is_good)
    after = HeldOutFeedback(said((-1, 1), (-4, 1), (-2, 2), (-8, 4)), is_good)
    # Per token: good -1 and -3; bad -2 and -2.
    assert before.num_pairs == 4 and before.accuracy == pytest.approx(2 / 4)
    assert after.accuracy == 1.0 - 0.0 and before.length_accuracy == pytest.approx(1.5 / 4)
    assert before.loss == pytest.approx(7 / 3)
    assert after.rewards(before, 0.5) == pytest.approx([0, -1, 2, 0])
    assert after.reward_accuracy(before) == pytest.approx(3.5 / 4)
    assert after.reward_margin(before, 0.5) == pytest.approx(1.5)
    sigmoids = [1 / (1 + math.exp(-value)) for value in (0, 1, 2, 0)]
    assert after.preference_loss(before, 0.5) == pytest.approx(sum(1 - value for value in sigmoids) / 4)


def test_what_is_measured_survives_json() -> None:
    feedback = HeldOutFeedback(said((-1, 1), (-2, 4)), (True, True))
    for one in (BEFORE, AFTER, replace(AFTER, differs=("tone", "", "tone")), feedback):
        assert type(one).from_json(json.loads(json.dumps(one.as_json(), allow_nan=False))) == one
    assert compared(feedback, feedback, 0.1)["accuracy_after"] is None  # nothing bad to compare with
    assert compared(BEFORE, AFTER, 0.5)["by_sum_after"] == 1.0
    for before, after in ((BEFORE, AFTER), (feedback, feedback)):
        assert as_table(before, after, 0.1, are_held_out=True).row_count >= 5


def test_a_loss_of_nought_has_no_change_in_percent() -> None:
    sure = HeldOutPairs((Said(0.0, 3),), (Said(-3.0, 3),))
    assert as_table(sure, sure, 0.1, are_held_out=True).row_count >= 5
