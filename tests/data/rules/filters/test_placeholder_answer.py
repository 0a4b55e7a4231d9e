"""Answers that only stand in for one are dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS

PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("placeholder_answer", "What is a heart attack?", "TODO"),
    ("placeholder_answer", "What is a heart attack?", "[Insert answer here]"),
    ("placeholder_answer", "What is a heart attack?", "N/A"),
    ("placeholder_answer", "What is a heart attack?", "..."),
    ("placeholder_answer", "What is a heart attack?", "null"),
    ("placeholder_answer", "高血压如何治疗？", "待补充"),
    ("placeholder_answer", "高血压如何治疗？", "（暂无答案）"),
    ("placeholder_answer", "高血压如何治疗？", "无"),
    ("placeholder_answer", "高血压如何治疗？", "……"),
]
FAMILIES = [
    (
        "placeholder_answer",
        PRESSURE_EN,
        [
            "TODO - fill in later",
            "Type your answer here.",
            "Please enter a response",
            "<your response>",
            "The answer will be added soon.",
            "#VALUE!",
            "#DIV/0!",
            "See attached document.",
            "As mentioned above.",
            "Ditto",
            "testing testing",
            "asdf asdf asdf",
            "foo bar",
            "Answer:",
            "A:",
            "[object Object]",
            "{{response}}",
            "<p></p>",
            "--",
            "sample answer",
            "Lorem ipsum dolor sit amet, consectetur.",
            "Data not available",
            "No response provided",
            "work in progress",
            "???",
            "_____",
        ],
    ),
    (
        "placeholder_answer",
        PRESSURE_ZH,
        [
            "请在这里填写您的回答",
            "请输入内容",
            "此处为参考答案",
            "答案略",
            "见附件",
            "详见上文",
            "同上题",
            "更新中",
            "待核实",
            "暂无相关资料",
            "没有相关信息",
            "测试 测试 测试",
            "（略）",
            "【请填写】",
            "参考答案：",
            "以下省略",
            "稍后补充",
            "xxx",
            "某某某",
            "？？",
            "内容待定",
            "正在更新中……",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_placeholder_answer_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix
