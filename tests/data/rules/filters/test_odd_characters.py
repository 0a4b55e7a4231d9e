"""Text of signs and control characters is dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
PRESSURE_EN = "How can I lower my blood pressure?"
FAULTS = [
    ("odd_characters", "Why exercise?", "@#$%^&*!~+=|<>?/;:_@#$%^&*"),
    ("odd_characters", "Why exercise?", "※◆□■◇○●△▲▽▼☆★§※◆□■◇"),
    ("odd_characters", "为什么要运动？", "规律\x00的运\x01动可\x02以增\x05强心脏功能。"),
    ("odd_characters", "@#$%^&*!~+=|<>?/;:_@#$%^&*", LONG_EN),
]
FAMILIES = [
    (
        "odd_characters",
        PRESSURE_EN,
        [
            "ชгδไრஅ가अაあΩბ한ธψक가ฃлゆऔლชгδไრஅ가अაあΩბ한ธψक가ฃлゆऔლ",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_odd_characters_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix
