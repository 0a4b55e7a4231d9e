"""Components of form: whole, in the right language, of the right length, without repetition."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("component", "answer", "wanted"),
    [
        ("not_empty", "...", 0),
        ("not_empty", "嗯", 1),
        ("not_empty", "<think>hm</think>", 0),
        ({"type": "not_empty", "of": "thought"}, "<think>hm</think>", 1),
        ("well_formed", "Take it with water.", 1),
        ("well_formed", "Rest for a day or two. Take it with the", 0),
        ("well_formed", "饭后服用，每日", 1),
        ("well_formed", "", 0),
        ({"type": "well_formed", "format": "json"}, '{"a": 1}', 1),
        ({"type": "well_formed", "format": "json"}, '```json\n{"a": 1}\n```', 1),
        ({"type": "well_formed", "format": "json"}, '{"a": 1', 0),
        ({"type": "well_formed", "format": "json"}, "[" * 100_000, 0),
        ({"type": "well_formed", "format": "markdown"}, "```py\nx = '```'\n```\nDone", 1),
        ({"type": "well_formed", "format": "markdown"}, "```py\nx = 1\n", 0),
        ({"type": "language", "want": "zh"}, "每天吃一片阿司匹林。", 1),
        ({"type": "language", "want": "zh"}, "Take one aspirin a day.", 0),
        ({"type": "language", "want": "en"}, "Take one 片 of aspirin a day.", 1),
        ({"type": "language", "want": "en"}, "42", 1),
        ({"type": "language", "want": "en"}, " ", 0),
        ({"type": "language", "want": "zh"}, "A", 1),
        ({"type": "language", "want": "zh"}, "OK", 1),
        ({"type": "language", "want": "zh"}, "面积是 $\\frac{width}{height} \\times length$ 平方米", 1),
        ("no_repetition", "1000000000000", 1),
        ("no_repetition", "1/3 = 0.3333333333333", 1),
        ("no_repetition", "+".join("3" * 12) + " = 36", 1),
        ("language", "每天饭后吃一片阿司匹林，多喝水，注意休息，如有不适请及时就医。", 0),
        ("language", "You should take one aspirin a day, after a meal.", 1),
        ({"type": "length", "min_chars": 3}, "ab", 0),
        ({"type": "length", "max_chars": 4}, "abcd", 1),
        ({"type": "length", "max_chars": 4}, "abcde", 0),
        ({"type": "length", "max_chars": 4, "soft": 3}, "abcdef", 0.5),
        ({"type": "length", "max_chars": 4, "soft": 3}, "abcdefgh", 0),
        ({"type": "length", "min_chars": 4, "soft": 3}, "ab", 0.5),
        ("no_repetition", "Drink water, rest, and see a doctor when it gets worse.", 1),
        ("no_repetition", "I am well. " * 20, 0),
        ("no_repetition", "哈" * 200, 0),
        ("no_repetition", "多喝水多休息。" * 20, 0),
        ("no_repetition", "", 0),
        ("think_format", "<think>2 + 2</think>4", 1),
        ("think_format", "2 + 2</think>4", 1),
        ({"type": "think_format", "opened": "answer"}, "2 + 2</think>4", 0),
        ({"type": "think_format", "opened": "prompt"}, "<think>2 + 2</think>4", 0),
        ("think_format", "<think>2</think><think>2</think>4", 0),
        ("think_format", "<think></think>4", 0),
        ("think_format", "<think>2</think> ", 0),
        ("think_format", "well <think>2</think>4", 0),
        ("think_format", "4", 0),
        ({"type": "contains", "words": ["doctor", "rest"], "pattern": r"\d mg"}, "See a Doctor, 5 mg", 2 / 3),
        ({"type": "contains", "words": ["doctor", "医生"], "need": "any"}, "请看医生", 1),
        ({"type": "contains", "words": ["rest"]}, "restless", 0),
        ({"type": "forbids", "words": ["as an AI"]}, "As an AI, I", 0),
        ({"type": "forbids", "pattern": "http"}, "See a doctor", 1),
    ],
)
def test_form_component_scores(score: Callable[..., float], component: Any, answer: str, wanted: float) -> None:
    assert score(component, answer) == pytest.approx(wanted)


def test_repetition_costs_more_the_more_there_is(score: Callable[..., float]) -> None:
    once = "Drink enough water every day, rest at home, and call a doctor if the fever lasts. "
    varied = once + "Keep the room cool and eat light meals while you recover from the flu. "
    values = [score("no_repetition", text) for text in (once, varied + "Drink enough water every day at home.")]
    assert 1 == values[0] >= values[1] > 0.5


def test_form_of_ended_and_tokens(score: Callable[..., float]) -> None:
    assert score("ended", "a", has_ended=True) == 1
    assert score("ended", "a", has_ended=False) == 0
    assert score({"type": "length", "max_tokens": 5}, "a b", num_tokens=6) == 0
    assert score({"type": "length", "max_tokens": 5, "soft": 1}, "a b", num_tokens=6) == 0.5


def test_words_are_found_however_accents_are_stored(score: Callable[..., float]) -> None:
    for word, answer in (("forêt", "La forêt est là."), ("서울", "수도는 서울이다")):
        for given, stored in (("NFC", "NFD"), ("NFD", "NFC")):
            words = [unicodedata.normalize(given, word)]
            text = unicodedata.normalize(stored, answer)
            assert score({"type": "contains", "words": words}, text) == 1
            assert score({"type": "forbids", "words": words}, text) == 0
            assert score({"type": "contains", "words": ["foret"]}, text) == 0
