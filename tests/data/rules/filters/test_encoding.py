"""Broken encodings are repaired where that is certain, and dropped where not."""

from __future__ import annotations

import unicodedata

import pytest

from dsr1_tune.data.record import Drop, Message, Place, Preference, Record
from dsr1_tune.data.rules.checker import Checker
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.data.rules.filters.encoding import Encoding, encoding
from dsr1_tune.data.rules.registry import Rules

ADVICE_EN = (
    "Walk every day and eat less salt. Sleep enough and do not smoke. Your doctor can check the result after a month."
)
ADVICE_ZH = "每天散步，少吃盐。保证睡眠，不要吸烟。一个月后请医生复查血压，看看效果如何。"
PRESSURE_EN = "How can I lower my blood pressure?"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("mojibake", "为什么要运动？", "瑙勫緥鐨勮繍鍔ㄥ彲浠ュ寮哄績鑴忓姛鑳姐?锛屽緢濂姐€?"),
    ("mojibake", "为什么要运动？", "规律的运动锟斤拷锟斤拷可以增强心脏功能。"),
    ("replacement_character", "Why exercise?", "Regular exerc\ufffdse strengthens the heart."),
    ("replacement_character", "为什么要运动？", "规律的\ufffd\ufffd可以增强心脏功能。"),
]
FAMILIES = [
    (
        "mojibake",
        PRESSURE_EN,
        [
            ADVICE_EN.encode("utf-16-le").decode("utf-16-be"),
            ADVICE_EN.replace(". ", ". It???s fine. ", 2),
        ],
    ),
    (
        "mojibake",
        PRESSURE_ZH,
        [
            ADVICE_ZH.encode("utf-8").decode("big5", "ignore"),
            ADVICE_ZH.encode("utf-8").decode("euc-kr", "ignore"),
            ADVICE_ZH.encode("utf-8").decode("shift_jis", "ignore"),
            ADVICE_ZH.encode("gbk").decode("big5", "ignore"),
            ADVICE_ZH[:20] + ADVICE_ZH[20:].encode().decode("gbk", "ignore"),
        ],
    ),
    ("mojibake", PRESSURE_EN, [ADVICE_EN.encode("ascii").decode("utf-16-le", "ignore")]),
    ("mojibake", PRESSURE_EN, [ADVICE_EN[:59] + ADVICE_EN[59:].encode("ascii").decode("utf-16-be", "ignore")]),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_encoding_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("gbk", "It’s a café, and Señora Peña’s soup is ready."),
        ("cp932", "It’s a café in Zürich, says Dr. Müller."),
        ("gb18030", "规律的运动，可以增强心脏功能，也能改善睡眠。"),
        ("big5", "很好，"),
    ],
)
def test_encoding_repairs_or_drops_what_was_read_in_an_asian_encoding(record, general, wrong, text):
    try:
        broken = text.encode().decode(wrong)
    except UnicodeDecodeError:  # bytes were lost: there is nothing to mend
        lossy = text.encode().decode(wrong, "ignore")
        assert general.check(record("What is it? 是什么？", lossy * 4)).row.code == "mojibake"
        return
    checked = general.check(record("What is it? 是什么？", broken))
    assert isinstance(checked.row, Record), checked.row
    assert (checked.row.answer, checked.repaired) == (text, ("encoding",))


def test_encoding_repairs_text_encoded_twice(record, general):
    meant = "规律的运动可以增强心脏功能。"
    checked = general.check(record("是什么？", meant.encode().decode("latin-1").encode().decode("latin-1")))
    assert checked.row.answer == meant


@pytest.mark.parametrize(
    ("broken", "meant"),
    [
        ("Itâ€™s a cafÃ©.", "It’s a café."),
        ("50Â°F is cold.", "50°F is cold."),
        ("规律的运动可以增强心脏功能。".encode().decode("latin-1"), "规律的运动可以增强心脏功能。"),
        ("规律的运动，可以增强心脏功能".encode().decode("gb18030"), "规律的运动，可以增强心脏功能"),
        ("规律的运动可以增强心脏功能".encode("gbk").decode("latin-1"), "规律的运动可以增强心脏功能"),
    ],
)
def test_encoding_repairs_a_wrong_encoding_first(record, general, broken, meant):
    row = record("What is it? 是什么？", broken)
    checked = general.check(row)
    assert isinstance(checked.row, Record), checked.row
    assert checked.row.answer == meant
    assert checked.repaired == ("encoding",)
    assert checked.row.messages[-1].path == "$.output"
    assert checked.row.place == row.place
    strict = Checker(general.pack.model_copy(update={"rules": Rules(encoding={"repair": False})}))
    assert strict.check(row).row.code == "mojibake"


@pytest.mark.parametrize(
    "fine", ["Él comió piñas en São Paulo, à côté de l’église.", "Größe: 5 µm ± 2 %, 20 °C", "涓涓细流", "naïve café"]
)
def test_encoding_keeps_accents(record, fine):
    assert encoding(record(fine, fine), Encoding()).messages[1].content == fine


def test_encoding_repairs_the_rejected_answer_too_and_else_leaves_it_alone(general):
    prompt, chosen = (Message("user", "What is it?", "$.prompt"),), Message("assistant", "It’s a cafÃ©.", "$.chosen")
    rejected = Message("assistant", "Itâ€™s TODO.", "$.rejected")
    checked = general.check(Preference(prompt, chosen, rejected, Place("a", 1, 0)))
    assert isinstance(checked.row, Preference)
    assert (checked.row.chosen.content, checked.row.rejected.content) == ("It’s a café.", "It’s TODO.")
    refused = Message("assistant", "I'm sorry, but I can't assist with that.", "$.rejected")
    fine = Preference(prompt, Message("assistant", "A café.", "$.chosen"), refused, Place("a", 1, 0))
    assert general.check(fine).row is fine
    worse = Preference(prompt, refused, Message("assistant", "A café."), Place("a", 1, 0))
    assert general.check(worse).row.code == "refusal"


def test_encoding_leaves_accents_as_they_are_stored(general):
    asked, said = (unicodedata.normalize("NFD", text) for text in ("Où est la forêt ?", "Elle est près de l’école."))
    row = Record((Message("user", asked), Message("assistant", said), Message("user", "café?"),
                  Message("assistant", "It’s a cafÃ©.")), Place("a.json", 1, 0))  # fmt: skip
    checked = general.check(row)
    assert [message.content for message in checked.row.messages] == [asked, said, "café?", "It’s a café."]
