"""Answers that break off are dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.data.rules.filters.truncated_answer import TruncatedAnswer, truncated_answer

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"

ADVICE_EN = (
    "Walk every day and eat less salt. Sleep enough and do not smoke. Your doctor can check the result after a month."
)
ADVICE_ZH = "每天散步，少吃盐。保证睡眠，不要吸烟。一个月后请医生复查血压，看看效果如何。"
PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("truncated_answer", "Why exercise?", LONG_EN + " In addition, people who walk every day are less"),
    ("truncated_answer", "Why exercise?", "Regular exercise strengthens the heart, the lungs and the"),
    (
        "truncated_answer",
        "Why exercise?",
        "1. It strengthens the heart and lungs.\n2. It keeps the weight down.\n3. It impr oves the sle",
    ),
    ("truncated_answer", "Write a loop.", "Here it is:\n```python\nfor i in range(10):\n    print("),
    ("truncated_answer", "Give JSON.", '{"name": "Anna", "age": 3, "city": "Par'),
    ("truncated_answer", "为什么要运动？", LONG_ZH + "此外，每天走路的人更"),
    ("truncated_answer", "为什么要运动？", "运动有以下几种好处："),
    ("truncated_answer", "为什么要运动？", "规律的运动可以增强心脏功能，降低血压，"),
]
FAMILIES = [
    (
        "truncated_answer",
        PRESSURE_EN,
        [
            ADVICE_EN + "\n\nIn addition, t",
            "1. Walk every day.\n2. Eat less salt.\n3.",
            "- Walk every day.\n- Eat less salt.\n-",
            "1) Walk every day. 2) Eat less salt. 3)",
            ADVICE_EN + "\n\nThe",
            ADVICE_EN + "\nMany people find that",
        ],
    ),
    (
        "truncated_answer",
        PRESSURE_ZH,
        [
            "1. 每天散步。\n2. 少吃盐。\n3.",
            "一、每天散步，坚持锻炼身体。\n二、少吃盐，多吃蔬菜水果。\n此外还",
            ADVICE_ZH + "另外还要避",
            "（1）每天散步。（2）少吃盐。（3）",
            "平时应该注意饮食清淡，保持心情舒畅，并且",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_truncated_answer_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


def test_truncated_answer_may_lack_a_full_stop_where_settings_say_so(record):
    unended = record("为什么要运动？", LONG_ZH + "此外，每天走路的人更健康")
    assert truncated_answer(unended, TruncatedAnswer()).code == "truncated_answer"
    assert truncated_answer(unended, TruncatedAnswer(unended=False)) is unended
