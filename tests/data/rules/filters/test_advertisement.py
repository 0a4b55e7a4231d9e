"""Advertisements in answers are dropped."""

from __future__ import annotations

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"
PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("advertisement", "Why exercise?", LONG_EN + " Visit http://cheap-pills.example.com now for a 50% discount!"),
    ("advertisement", "Why exercise?", LONG_EN + " Call now 1-800-555-0199 for a free trial!"),
    ("advertisement", "为什么要运动？", LONG_ZH + "更多优惠请加微信：abc12345。"),
    ("advertisement", "为什么要运动？", LONG_ZH + "咨询热线：400-123-4567，欢迎来电。"),
    ("advertisement", "为什么要运动？", LONG_ZH + "添加QQ群 123456789 领取资料。"),
    ("advertisement", "为什么要运动？", LONG_ZH + "预约请拨打电话13812345678，免费咨询。"),
]
FAMILIES = [
    (
        "advertisement",
        PRESSURE_EN,
        [
            (
                "We sell top quality tea at wholesale prices. For orders call +44 20 7946 0958 or write to "
                "sales@teahouse.com."
            ),
        ],
    ),
    (
        "advertisement",
        PRESSURE_ZH,
        [
            "代办高血压保健品，正品低价，扫码加客服微信 bp88990 立享优惠！",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_advertisement_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix
