"""Repeated phrases, lines and turns are dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.data.rules.filters.repetition import RepeatedText, repeated_text

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"
PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("repeated_text", "Why exercise?", LONG_EN + " It is good for you and your heart." * 7),
    ("repeated_text", "Why exercise?", "It helps the the the the the the the the the the the the the the the."),
    ("repeated_text", "Why exercise?", LONG_EN + " " + LONG_EN),
    ("repeated_text", "为什么要运动？", LONG_ZH + "坚持运动对身体有好处。" * 7),
    ("repeated_text", "为什么要运动？", "运动很好运动很好运动很好运动很好运动很好运动很好运动很好运动很好"),
    ("repeated_text", "为什么要运动？", LONG_ZH + "\n" + LONG_ZH),
    (
        "repeated_lines",
        "Why exercise?",
        LONG_EN + "\nIt keeps you fit and young.\nAsk your doctor." * 1 + "\nStay active." * 6,
    ),
    ("repeated_lines", "为什么要运动？", LONG_ZH + "\n一、坚持锻炼身体" * 6),
]
FAMILIES = [
    (
        "repeated_text",
        PRESSURE_EN,
        [
            " ".join(f"{n}. Walk a little every single day." for n in range(1, 9)),
            " ".join(f"({n}) Eat less salt and more fruit." for n in range(1, 10)),
        ],
    ),
    (
        "repeated_text",
        PRESSURE_ZH,
        [
            " ".join(f"{n}、每天坚持散步半个小时。" for n in range(1, 9)),
        ],
    ),
    (
        "repeated_lines",
        PRESSURE_ZH,
        [
            "\n".join(f"{n}. 每天坚持散步半个小时。" for n in range(1, 9)),
        ],
    ),
    (
        "repeated_lines",
        PRESSURE_EN,
        [
            "\n".join(["- Walk a little every single day."] * 8),
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_repetition_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


def test_repeated_turn_drops_the_same_turn_twice(conversation, general):
    twice = conversation("Why exercise?", LONG_EN, "Why exercise?", LONG_EN)
    drop = general.check(twice).row
    assert (drop.code, drop.path) == ("repeated_turn", "$.messages[2].content")
    other = conversation("Why exercise?", LONG_EN, "Why exercise?", "Because it is good for the heart.")
    assert general.check(other).row is other


def test_repeated_text_thresholds_are_settings(record):
    twice = record("Why exercise?", "It keeps you fit and happy. " * 6)
    assert repeated_text(twice, RepeatedText()).code == "repeated_text"
    assert repeated_text(twice, RepeatedText(max_share=1, max_run=9)) is twice
