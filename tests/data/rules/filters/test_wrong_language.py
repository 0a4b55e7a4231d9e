"""Answers in another language than the question are dropped."""

from __future__ import annotations

import unicodedata

import pytest

from dsr1_tune.data.record import Drop
from dsr1_tune.data.rules.codes import MEANINGS

LONG_EN = "Regular exercise strengthens the heart. It also lowers the blood pressure and helps people to sleep well."
LONG_ZH = "规律的运动可以增强心脏功能。它还能降低血压，帮助人们睡得更好。饮食也要清淡一些。"
PRESSURE_ZH = "怎样才能降低血压？"
FAULTS = [
    ("wrong_language", "Why should people exercise every day?", LONG_ZH),
    ("wrong_language", "为什么人们应该每天运动？", LONG_EN),
    (
        "wrong_language",
        "为什么人们应该每天运动？",
        "毎日運動することは、心臓を強くし、よく眠れるようになるため、とても大切なことです。",
    ),
    (
        "wrong_language",
        "Why should people exercise every day?",
        "Регулярные упражнения укрепляют сердце и помогают людям лучше спать.",
    ),
    (
        "wrong_language",
        "Why should people exercise every day?",
        "Le sport est bon pour le cœur et il aide les gens à dormir, car le corps est plus fatigué dans la soirée.",
    ),
]
FAMILIES = [
    (
        "wrong_language",
        "How can I sleep better?",
        [
            (
                "Il faut se coucher à la même heure chaque soir et éviter les écrans avant de dormir, car la "
                "lumière retarde le sommeil."
            ),
            (
                "Gehen Sie jeden Abend zur gleichen Zeit ins Bett und vermeiden Sie Kaffee am Nachmittag, dann "
                "schlafen Sie besser ein."
            ),
            (
                "Hay que acostarse a la misma hora todas las noches y no tomar café por la tarde, porque "
                "dificulta el sueño."
            ),
            (
                "È bene andare a letto alla stessa ora ogni sera e non bere caffè nel pomeriggio, perché "
                "disturba il sonno."
            ),
        ],
    ),
    (
        "wrong_language",
        PRESSURE_ZH,
        [
            "毎日歩いて、塩分を控えめにし、よく眠ることが大切です。医師に相談してください。",
        ],
    ),
]


@pytest.mark.parametrize(
    ("code", "question", "answer"),
    [*FAULTS, *((code, question, answer) for code, question, some in FAMILIES for answer in some)],
)
def test_wrong_language_drops_its_faults(record, general, code, question, answer):
    drop = general.check(record(question, answer)).row
    assert isinstance(drop, Drop)
    assert drop.code == code
    assert drop.code in MEANINGS
    assert drop.path == ("$.input" if question.startswith("@#") else "$.output")
    assert drop.detail and drop.fix


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_wrong_language_is_told_however_syllables_are_stored(record, general, stored):
    asked = "대한민국의 수도는 어디이며 인구는 얼마나 됩니까?"
    right = "대한민국의 수도는 서울이며, 인구는 약 940만 명입니다. 서울은 한강을 끼고 있는 도시입니다."
    for question, answer in ((asked, right), ("Quelle est la capitale de la Corée ?", right)):
        row = record(question, unicodedata.normalize(stored, answer))
        found = general.check(row).row
        if question == asked:
            assert found is row
        else:
            assert found.code == "wrong_language" and "an answer in Korean" in found.detail
