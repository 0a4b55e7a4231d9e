"""What is measured of answers: equal to a plain slow computation, and counted as it says."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from dsr1_tune.align.preference.metrics import AnswerLogProb, HeldOutFeedback, HeldOutPairs, as_table, compared


def said(*numbers: tuple[float, int]) -> tuple[AnswerLogProb, ...]:
    return tuple(AnswerLogProb(*number) for number in numbers)


BEFORE = HeldOutPairs(said((-10, 10), (-9, 3), (-4, 2)), said((-12, 10), (-8, 4), (-6, 3)))
AFTER = HeldOutPairs(said((-8, 10), (-9, 3), (-4, 2)), said((-16, 10), (-10, 4), (-5, 3)))


def test_pair_metrics_count_as_a_whole_and_per_token() -> None:
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


def test_feedback_metrics_count_all_ways_to_compare() -> None:
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


def test_preference_metrics_survive_json() -> None:
    feedback = HeldOutFeedback(said((-1, 1), (-2, 4)), (True, True))
    for one in (BEFORE, AFTER, replace(AFTER, differs=("tone", "", "tone")), feedback):
        assert type(one).from_json(json.loads(json.dumps(one.as_json(), allow_nan=False))) == one
    assert compared(feedback, feedback, 0.1)["accuracy_after"] is None  # nothing bad to compare with
    assert compared(BEFORE, AFTER, 0.5)["by_sum_after"] == 1.0
    for before, after in ((BEFORE, AFTER), (feedback, feedback)):
        assert as_table(before, after, 0.1, are_held_out=True).row_count >= 5


def test_preference_table_has_no_change_in_percent_of_a_loss_of_zero() -> None:
    sure = HeldOutPairs((AnswerLogProb(0.0, 3),), (AnswerLogProb(-3.0, 3),))
    assert as_table(sure, sure, 0.1, are_held_out=True).row_count >= 5
