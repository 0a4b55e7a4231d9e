"""Answers that repeat or restate the question are dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS

PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("answer_repeats_question", "What is a heart attack?", "What is a heart attack?"),
    ("answer_repeats_question", "What is a heart attack?", "question: what is a HEART attack"),
    ("answer_repeats_question", "Sort the words.\npear, apple", "Sort the words."),
    ("answer_repeats_question", "高血压如何治疗？", "高血压如何治疗"),
    ("answer_repeats_question", "高血压如何治疗？", "问题：高血压如何治疗？"),
    ("answer_restates_question", "How do I cook rice?", "You are asking how to cook rice."),
    ("answer_restates_question", "How do I cook rice?", "You want to know how to cook rice. That is a good question."),
    ("answer_restates_question", "高血压患者能吃党参吗？", "您问的是高血压患者能不能吃党参。"),
    ("answer_restates_question", "高血压患者能吃党参吗？", "这是一个关于高血压患者能吃党参吗的问题。"),
]
FAMILIES = [
    (
        "answer_restates_question",
        PRESSURE_EN,
        [
            "You would like to know how you can lower your blood pressure.",
            "How to lower my blood pressure.",
            "Thanks for asking about how I can lower my blood pressure!",
            "Let me rephrase the question: how can I lower my blood pressure?",
            "In other words, you want to lower your blood pressure.",
            "How can I lower my blood pressure? That is a very common question.",
            "The prompt asks: how can I lower my blood pressure?",
        ],
    ),
    (
        "answer_restates_question",
        PRESSURE_ZH,
        [
            "谢谢您的咨询：怎样才能降低血压。",
            "怎样才能降低血压？这是一个大家都很关心的问题。",
            "题目问的是怎样才能降低血压。",
            "用户询问怎样才能降低血压。",
            "关于怎样才能降低血压这个话题。",
            "让我先重述一下问题：怎样才能降低血压。",
        ],
    ),
    (
        "answer_repeats_question",
        PRESSURE_EN,
        [
            "ＨＯＷ ＣＡＮ Ｉ ＬＯＷＥＲ ＭＹ ＢＬＯＯＤ ＰＲＥＳＳＵＲＥ？",
            "Q: How can I lower my blood pressure?\nAnswer:",
            "How can I lower my blood pressure? How can I lower my blood pressure?",
        ],
    ),
    (
        "answer_repeats_question",
        PRESSURE_ZH,
        [
            "「怎样才能降低血压？」",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_restated_question_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix
