"""Refusals are dropped."""

from __future__ import annotations

import unicodedata

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.data.rules.filters.refusal import Refusal, refusal

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"
PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("refusal", "Why exercise?", "I'm sorry, but I can't assist with that."),
    ("refusal", "Why exercise?", "I’m sorry, but I can’t help with that request."),
    ("refusal", "Why exercise?", "As an AI language model, I do not have a body. " + LONG_EN),
    ("refusal", "Why exercise?", "I cannot fulfill this request."),
    ("refusal", "为什么要运动？", "抱歉，我无法回答这个问题。"),
    ("refusal", "为什么要运动？", "作为一个人工智能语言模型，我没有身体。" + LONG_ZH),
    ("refusal", "为什么要运动？", "对不起，我不能帮助您完成这个请求。"),
]
FAMILIES = [
    (
        "refusal",
        PRESSURE_EN,
        [
            "I am sorry, but I do not have enough information to answer this question.",
            "I have to decline this request.",
            "I'm not comfortable discussing this topic.",
            "I don't feel comfortable giving advice on that.",
            "My training data only goes up to 2021.",
            "It is not appropriate for me to comment on this.",
            "Being an AI, I am unable to have opinions on blood pressure.",
            "I'm not programmed to answer medical questions.",
            "This request goes against my guidelines.",
            "As of my last knowledge update in 2021, nothing was known.",
        ],
    ),
    (
        "refusal",
        PRESSURE_ZH,
        [
            "抱歉，这个我不会，我还在学习中。",
            "很抱歉，我没有足够的资料来回答。",
            "对不起，这个问题涉及隐私，我不便回答。",
            "我的训练数据截止到2021年，无法回答。",
            "恕我无法回答这个问题。",
            "這個問題超出了我的知識範圍。",
            "身為一個AI，我沒有辦法回答。",
            "很抱歉，我無法提供醫療建議。",
            "我只是一个聊天机器人，不能提供诊断。",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_refusal_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


def test_refusal_thresholds_and_phrases_are_settings(record):
    short = record("Why exercise?", "I'm sorry, but I can't help with that." + LONG_EN)
    assert refusal(short, Refusal()).code == "refusal"
    assert refusal(short, Refusal(max_chars=50)) is short
    assert refusal(record("Q", "No comment, sorry."), Refusal(phrases=("no comment",))).code == "refusal"


def test_phrases_are_found_however_accents_are_stored(record):
    said, phrase = "Désolé, je ne peux pas.", "désolé, je"
    for stored in ("NFC", "NFD"):
        row = record("Pourquoi ?", unicodedata.normalize(stored, said))
        for given in ("NFC", "NFD"):
            rule = Refusal(phrases=(unicodedata.normalize(given, phrase),))
            assert refusal(row, rule).code == "refusal"
        assert refusal(row, Refusal(phrases=("desole, je",))) is row
