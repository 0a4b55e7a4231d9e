"""A web page's markup is dropped; template placeholders are remarked on."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop, Record
from dsr1_tune.data.rules.codes import MEANINGS

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"
FAULTS = [
    ("html_markup", "Why exercise?", f'<div class="content"><p>{LONG_EN}</p></div>'),
    ("html_markup", "Why exercise?", LONG_EN.replace(". ", ".<br>") + "<br/>&nbsp;"),
    ("html_markup", "为什么要运动？", f"<p>{LONG_ZH}</p>"),
]
FAMILIES = [
    (
        "html_markup",
        "How do I treat an allergic reaction?",
        [
            "&lt;p&gt;Take an antihistamine.&lt;/p&gt;&lt;p&gt;See a doctor.&lt;/p&gt;",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_markup_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


def test_template_placeholder_keeps_the_row_with_a_remark(record, general):
    checked = general.check(record("Who are you?", "I am {{name}}, made by {{ author }}."))
    assert isinstance(checked.row, Record)
    assert [(note.code, note.path) for note in checked.notes] == [("template_placeholder", "$.output")]
    assert "{{name}}" in checked.notes[0].detail and "{{ author }}" in checked.notes[0].detail
