"""Rows that hold a question of an evaluation file: found by half of its 13-grams, short ones by equality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsr1_tune.data.dedup.contamination import Evaluation
from dsr1_tune.data.dedup.ngrams import normalise, tokens
from dsr1_tune.data.output import Turns
from dsr1_tune.errors import DataError

LONG = (
    "A 45 year old man comes to the clinic because he has had chest pain for three days and a fever since this morning"
)
ZH = "一名四十五岁男性患者因胸痛三天并且今晨开始发热前来门诊就诊，最可能的诊断是什么？"


def evaluation(folder: Path, *questions: str, containment: float = 0.5) -> Evaluation:
    file = folder / "eval.jsonl"
    file.write_text("".join(json.dumps({"question": q, "answer": "x"}) + "\n" for q in questions))
    return Evaluation.of([file], {}, containment)


def found(held: Evaluation, *rows: Turns) -> dict[int, str]:
    text = normalise(rows)
    return {row: drop.detail for row, drop in held.find(text, tokens(text)).items()}


def test_long_questions_are_found_inside_other_texts(tmp_path: Path) -> None:
    held = evaluation(tmp_path, LONG, ZH)
    rows = [
        [("user", f"Read this case. {LONG.upper()}!"), ("assistant", "Pneumonia")],
        [("user", "What is it?"), ("assistant", f"As in the exam: {LONG}")],
        [("user", ZH.replace("患者", "病人")), ("assistant", "肺炎")],
        [("user", "请看：" + ZH.replace("门诊", "門診")), ("assistant", "肺炎")],
        [("user", "A 45 year old man comes to the clinic with a cough"), ("assistant", "A cold")],
    ]
    details = found(held, *rows)
    assert set(details) == {0, 1, 2, 3}
    assert details[0].startswith("holds 100% of the 13-grams of") and details[0].endswith("eval.jsonl:1")
    assert details[3].endswith("eval.jsonl:2")


def test_the_share_is_a_share_of_the_question(tmp_path: Path) -> None:
    words = LONG.split()
    assert len(words) == 24  # and so 12 13-grams
    half, less = " ".join(words[:18]), " ".join(words[:17])
    held = evaluation(tmp_path, LONG)
    assert found(held, [("user", f"{half} but then")])[0].startswith("holds 50%")
    assert found(held, [("user", f"{less} but then")]) == {}
    assert found(held, [("user", f"{less}. {less}, {less}")]) == {}
    assert found(evaluation(tmp_path, LONG, containment=0.6), [("user", half)]) == {}


def test_short_questions_are_found_by_equality(tmp_path: Path) -> None:
    held = evaluation(tmp_path, "What is aspirin?", "是吗", "???")
    rows = [
        [("user", "what is ASPIRIN"), ("assistant", "A drug")],
        [("user", "What is aspirin made of?"), ("assistant", "An acid")],
        [("user", "hello"), ("assistant", "hi"), ("user", "是吗？"), ("assistant", "是")],
        [("user", "!"), ("assistant", "What is aspirin?")],
    ]
    details = found(held, *rows)
    assert set(details) == {0, 2}
    assert details[0].startswith("asks the same as the evaluation row") and details[0].endswith("eval.jsonl:1")


def test_an_evaluation_file_without_rows_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text('{"foo": 1}\n')
    with pytest.raises(DataError, match="no row can be read"):
        Evaluation.of([tmp_path / "eval.jsonl"], {}, 0.5)
