"""The result that an answer is compared with, in every column that may hold it."""

from __future__ import annotations

from typing import Any

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read.ground_truth import RESULTS
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Prompt, messages_of

U, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))


def only(write: Any, row: dict[str, Any], mapping: dict[str, str] | None = None) -> Any:
    (found,) = read([write("a.jsonl", [row])], mapping)
    return found


def said(row: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages_of(row)]


@pytest.mark.parametrize(
    ("row", "mapping", "answer"),
    [
        ({"prompt": "Q", "ground_truth": 42}, {}, "42"),
        ({"messages": [U], "answer": "42"}, {}, "42"),
        ({"messages": [U], "solution": "42"}, {}, "42"),
        ({"prompt": [U], "reward_model": {"style": "rule", "ground_truth": "42"}}, {}, "42"),
        ({"problem": "Q", "solution": "6 * 7", "answer": "42"}, {"ground_truth": "answer"}, "42"),
        ({"prompt": "Q", "ground_truth": None}, {}, None),
        ({"prompt": "Q", "expected": "42", "ground_truth": "43"}, {}, "42"),
        ({"prompt": "Q", "expected": " ", "ground_truth": 42.0}, {}, "42"),
        ({"prompt": "Q", "expected": "41", "Final": "42"}, {"ground_truth": "final"}, "42"),
        ({"prompt": "Q", "ground_truth": ""}, {}, None),
        ({"prompt": [U], "reward_model": "a-model"}, {}, None),
    ],
    ids=str,
)
def test_ground_truth_of_prompts(write, row, mapping, answer):
    found = only(write, row, mapping)
    assert isinstance(found, Prompt)
    assert (said(found), found.answer) == ([("user", "Q")], answer)


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        *[({"prompt": "Q", "answer": "6 * 7, so 42", name: "42"}, {}) for name in RESULTS[:-1]],
        ({"prompt": "Q", "answer": "6 * 7, so 42", "reward_model": {"ground_truth": 42}}, {}),
        ({"messages": [U, {"role": "assistant", "content": "6 * 7"}], "right": "42"}, {"ground_truth": "right"}),
        ({"prompt": "Q", "chosen": "6 * 7", "rejected": "B", "expected": 42}, {}),
    ],
    ids=str,
)
def test_ground_truth_goes_before_an_answer(write, row, mapping):
    (found,) = prepare(Data(files=(write("a.jsonl", [row]),), map=mapping), Prompt).rows
    assert found.answer == "42"


def test_ground_truth_that_is_no_text_drops_the_row(write):
    rows = [{"prompt": "P", "answer": "42", "expected": [4, 2]}, {"prompt": "Q", "answer": "42", "expected": ""}]
    found = prepare(Data(files=(write("a.jsonl", rows),)), Prompt)
    assert [(drop.code, drop.path, drop.place.line) for drop in found.drops] == [("wrong_type", "$.expected", 1)]
    assert [row.answer for row in found.rows] == ["42"]
