"""What all components share: the part of an answer they read, and errors that stay with one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dsr1_tune.align.rewards.component import Answered, Mapped, NoScore, attempt, in_batches, read_part
from dsr1_tune.align.rewards.layered import LayeredReward


def test_component_reads_nothing_in_a_thought_that_is_not_closed(score: Callable[..., float]) -> None:
    assert score("not_empty", "2 and 2", opens_thought=True) == 0
    assert score("not_empty", "2 and 2</think>4", opens_thought=True) == 1
    assert score("numeric", "so 4", "4", opens_thought=True) == 0
    assert score({"type": "not_empty", "of": "thought"}, "2 and 2", opens_thought=True) == 1


def test_component_that_raises_anything_ends_no_run(
    own: Callable[[str], LayeredReward], answered: Callable[..., Answered]
) -> None:
    code = """\
import asyncio

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def good(answer):
    if answer == "mute":
        raise Mute
    if answer == "cancelled":
        raise asyncio.CancelledError
    if answer == "stop":
        raise KeyboardInterrupt
    return 1
"""
    reward = own(code)
    found = reward.score([answered(one) for one in ("mute", "fine", "cancelled")])
    assert [result.components["task/function"] for result in found] == [0, 1, 0]
    assert found[0].errors == ("task/function: Mute",)
    assert found[2].errors == ("task/function: NoScore: it raised CancelledError",)
    with pytest.raises(KeyboardInterrupt):
        reward.score([answered("stop")])


def test_in_batches_keeps_why_one_has_no_score() -> None:
    why = NoScore("9,000 tokens, 2,048 are allowed")
    found = in_batches(lambda items: [why, 3.0, float("nan")], ["a", "b", "c"], lambda number: number / 4)
    assert found[:2] == [why, 0.75] and "no number" in str(found[2])


def test_read_part_of_an_answer() -> None:
    text = "<think>two and two</think>4"
    assert [read_part(text, part) for part in ("said", "thought", "all")] == ["4", "two and two", text]


def test_attempt_gives_a_number_or_the_error() -> None:
    one = Answered((), "a")
    assert attempt(lambda one: True, one) == 1.0
    for value in (None, "high", float("nan"), float("inf")):
        assert isinstance(attempt(lambda one, value=value: value, one), NoScore)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "number", "wanted"),
    [
        ({"scale": (0, 4)}, 1, 0.25),
        ({"scale": (4, 0)}, 1, 0.75),
        ({"scale": (0, 4)}, 9, 1),
        ({"sigmoid": True}, 0, 0.5),
        ({"sigmoid": True}, -1e6, 0),
        ({"unbounded": True}, 9, 9),
        ({}, 0.3, 0.3),
    ],
)
def test_mapped_number_becomes_a_score(settings: dict[str, Any], number: float, wanted: float) -> None:
    assert Mapped(**settings).mapped(number) == wanted


def test_mapped_number_outside_0_to_1_needs_a_way() -> None:
    with pytest.raises(NoScore, match="not from 0 to 1"):
        Mapped().mapped(2)
    with pytest.raises(ValueError, match="in one way only"):
        Mapped(sigmoid=True, unbounded=True)
