"""The medical example: good records that end as they should, and bad rows that are all found."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from dsr1_tune.config import LoraRun
from dsr1_tune.data.pipeline import Prepared, examine
from dsr1_tune.data.record import Record
from dsr1_tune.settings import load_config

MEDICAL = Path(__file__).parents[1] / "examples" / "medical" / "medical.json"
DISCLAIMERS = ("This is general health information, not medical advice.", "以上为一般健康知识，不能代替医生的诊断。")

# What is wrong with the rows that are bad on purpose, and where in the row.
BAD = Counter(
    {
        ("not_an_object", "$", "text"): 1,
        ("not_an_object", "$", "a number"): 1,
        ("unknown_fields", "$", "the object has no fields"): 1,
        ("missing_field", "$.output", "add 'output'"): 1,
        ("missing_field", "$.output", "rename 'ouput' to 'output'"): 1,
        ("null_value", "$.output", "is null"): 1,
        ("wrong_type", "$.instruction", "a list"): 1,
        ("wrong_type", "$.output", "an object"): 1,
        ("wrong_type", "$.history[0]", "not a pair"): 1,
        ("empty_question", "$.instruction", "is blank"): 1,
        ("empty_answer", "$.output", "is blank"): 2,
        ("answer_too_short", "$.output", "1 characters"): 1,
        ("exact_duplicate", "$", "the same as line"): 3,
    }
)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """As the example's own settings have it: they name its file from the top of the repository."""
    data = load_config(LoraRun, MEDICAL.with_name("lora.yaml")).data
    assert [MEDICAL.parents[2] / file for file in data.files] == [MEDICAL]
    return examine(data.model_copy(update={"files": (MEDICAL,)}))


def test_there_are_enough_good_records(prepared: Prepared) -> None:
    assert len(prepared.records) >= 190
    assert all(isinstance(row, Record) for row in prepared.rows)


def test_every_bad_row_is_found(prepared: Prepared) -> None:
    assert len(BAD) >= 12
    for (code, path, said), number in BAD.items():
        found = [drop for drop in prepared.drops if (drop.code, drop.path) == (code, path)]
        assert sum(said in f"{drop.detail}; {drop.fix}" for drop in found) == number, (code, path, said)
    assert len(prepared.drops) == BAD.total()
    lines = MEDICAL.read_text(encoding="utf-8").splitlines()
    for drop in prepared.drops:
        assert drop.fix and drop.place
        assert json.loads(lines[drop.place.line - 1].rstrip(",")) == drop.row


def test_every_good_answer_ends_with_a_disclaimer(prepared: Prepared) -> None:
    assert [record.place for record in prepared.records if not record.answer.endswith(DISCLAIMERS)] == []
    chinese = [record for record in prepared.records if record.answer.endswith(DISCLAIMERS[1])]
    assert len(chinese) >= 20


def test_questions_are_asked_once(prepared: Prepared) -> None:
    asked = Counter(tuple(message.content for message in record.messages[:-1]) for record in prepared.records)
    assert [question for question, times in asked.items() if times > 1] == []
