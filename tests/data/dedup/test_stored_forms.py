"""Texts that look the same are the same, with accents and syllables as one character (NFC) or as several (NFD)."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from dsr1_tune.data.dedup.clusters import contradictions
from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.exact import first_copies
from dsr1_tune.data.dedup.languages import LANGUAGES, language_codes
from dsr1_tune.data.dedup.minhash import Lookup, verify
from dsr1_tune.data.dedup.ngrams import normalise, tokens
from dsr1_tune.data.dedup.row_hashes import Alike
from dsr1_tune.data.output import Turns
from dsr1_tune.data.record import Message, Place, Record

PAIRS = {
    "Korean": (
        "대한민국의 수도는 어디이며 그 도시의 인구는 대략 얼마나 됩니까? 역사도 함께 알려 주십시오.",
        "대한민국의 수도는 서울이며 인구는 약 구백사십만 명입니다. 조선 시대부터 나라의 중심이었습니다.",
    ),
    "Vietnamese": (
        "Thủ đô của nước Việt Nam là thành phố nào và thành phố này có những đặc điểm gì nổi bật nhất?",
        "Thủ đô của Việt Nam là Hà Nội, một thành phố hơn một nghìn năm tuổi nổi tiếng với phố cổ và ẩm thực.",
    ),
    "French": (
        "Pourquoi la forêt équatoriale est-elle menacée, et où les élèves peuvent-ils trouver des données sûres ?",
        "La forêt est menacée par l'élevage et les incendies; les données sont publiées par l'agence européenne.",
    ),
}
OTHERS = {
    "Korean": "일본의 수도는 어디이며 그 도시의 인구는 대략 얼마나 됩니까? 역사도 함께 알려 주십시오.",
    "Vietnamese": "Thủ đô của nước Thái Lan là thành phố nào và thành phố này có những đặc điểm gì nổi bật nhất?",
    "French": "Pourquoi la forêt boréale est-elle menacée, et où les élèves peuvent-ils trouver des données sûres ?",
}


def apart(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def half_apart(text: str) -> str:
    return apart(text[: len(text) // 2]) + text[len(text) // 2 :]


def record(question: str, answer: str, index: int = 0, tools: str = "") -> Record:
    return Record((Message("user", question), Message("assistant", answer)), Place("a.json", index + 1, index), tools)


@pytest.mark.parametrize("language", PAIRS)
def test_exact_copies(language: str) -> None:
    question, answer = PAIRS[language]
    rows = [record(question, answer), record(apart(question), answer), record(half_apart(question), apart(answer))]
    assert first_copies([*rows, record(OTHERS[language], answer)]).tolist() == [0, 0, 0, 3]


def test_accents_that_differ_keep_texts_apart() -> None:
    for one, other in (("pêche", "pèche"), ("ma", "mà"), ("mả", "mã"), ("각", "간"), ("が", "か")):
        assert first_copies([record(one, "A"), record(apart(other), "A")]).tolist() == [0, 1], one


def test_tools_and_half_width_kana() -> None:
    tools = '[{"name": "météo"}]'
    assert first_copies([record("Q", "A", tools=tools), record("Q", "A", tools=apart(tools))]).tolist() == [0, 0]
    assert first_copies([record("ﾊﾞｽｶﾞｲﾄﾞ", "A"), record("バスガイド", "A")]).tolist() == [0, 0]


@pytest.mark.parametrize("language", PAIRS)
def test_near_copies_are_as_similar_as_in_one_form(language: str) -> None:
    question, answer = PAIRS[language]

    def similarity(asked: str, said: str) -> list[float]:
        turns: list[Turns] = [[("user", question), ("assistant", answer)], [("user", asked), ("assistant", said)]]
        none = Lookup(np.zeros(0, np.uint64))
        return verify(np.array([[0, 1]]), np.array([0, 1]), turns, 0.6, none).similarity.tolist()

    changed = answer + " " + question.split()[0]
    assert similarity(apart(question), apart(changed)) == similarity(question, changed) != []
    assert similarity(apart(OTHERS[language]), apart(answer)) == similarity(OTHERS[language], answer)


@pytest.mark.parametrize("language", PAIRS)
def test_evaluation_questions_are_found(language: str, tmp_path: Path) -> None:
    question, answer = PAIRS[language]
    short = question.split()[0]
    for stored, found in ((str, apart), (apart, str), (half_apart, apart)):
        file = tmp_path / "eval.jsonl"
        asked = [{"question": stored(one), "answer": "x"} for one in (question, short)]
        file.write_text("\n".join(map(json.dumps, asked)))
        evaluation = Evaluation.of([file], {}, 0.5)
        rows: list[Turns] = [
            [("user", "? " + found(question)), ("assistant", answer)],
            [("user", found(short)), ("assistant", answer)],
            [("user", found(answer.split()[-1])), ("assistant", "A")],
        ]
        text = normalise(rows)
        assert sorted(evaluation.find(text, tokens(text))) == [0, 1]


def test_copies_stay_on_one_side_of_a_split_and_in_one_stratum() -> None:
    rows = [
        record(change(text), answer, 10 * number + place)
        for number, (text, answer) in enumerate(PAIRS.values())
        for place, change in enumerate((str, apart, half_apart))
    ]
    alike = Alike.of(rows)
    assert alike.groups.tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert alike.languages.reshape(3, 3).tolist() == [[code] * 3 for code in alike.languages[::3].tolist()]
    found = language_codes(tokens(normalise([[("user", apart(PAIRS["Korean"][0]))]])))
    assert LANGUAGES[found[0]] == "ko"


def test_answers_that_differ_in_form_only_do_not_contradict() -> None:
    members = [np.array([0, 1])]
    assert contradictions(members, lambda _: ["Hà Nội", apart("Hà Nội.")]) == {}
    assert contradictions(members, lambda _: ["Hà Nội", apart("Huế")]) == {0: 1, 1: 0}
