"""Labels: what says good, bad or nothing, and what is a rating or a topic."""

from __future__ import annotations

from typing import Any

import pytest

from dsr1_tune.config import Data
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.read.labels import is_good
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Drop, Feedback, Record
from dsr1_tune.errors import DataError

U, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))


def only(write: Any, row: dict[str, Any], mapping: dict[str, str] | None = None) -> Any:
    (found,) = read([write("a.jsonl", [row])], mapping)
    return found


@pytest.mark.parametrize(
    "label", [True, 1, 1.0, "1", "TRUE", "good", "Thumbs up", "thumbs-up", "👍", "👍🏽", "好", " 赞。"]
)
def test_is_good_of_labels_that_say_good(label):
    assert is_good(label) is True


@pytest.mark.parametrize("label", [False, 0, 0.0, "0", "no", "BAD", "thumbs_down", "👎", "❌", "差", "不满意"])
def test_is_good_of_labels_that_say_bad(label):
    assert is_good(label) is False


@pytest.mark.parametrize("label", [2, -1, 0.5, "4.5", "5/5", "maybe", "", "not good", None, ["good"], {"up": 1}])
def test_is_good_of_labels_that_say_nothing(label):
    assert is_good(label) is None


def test_labels_are_never_ratings(write):
    """1 among ratings may be the worst of five, so that it says nothing either."""
    rows = [{"prompt": f"Q{n}", "completion": "A", "label": n} for n in (4, 1, 0)]
    drops = list(read([write("a.jsonl", rows)]))
    assert {(drop.code, drop.path) for drop in drops} == {("unknown_label", "$.label")}
    assert "4 is a rating" in drops[0].detail and "1 may be a rating, as 4 is" in drops[1].detail
    assert all("write true or false" in drop.fix for drop in drops)
    # A column of ratings is a column like any other, until somebody calls it a label.
    stars = [{"prompt": "Q", "response": "A", "rating": 5}, {"prompt": "R", "response": "A", "rating": 1}]
    file = write("b.jsonl", stars)
    assert {type(row) for row in read([file])} == {Record}
    assert [row.code for row in read([file], {"label": "rating"})] == ["unknown_label"] * 2
    with pytest.raises(DataError, match="no row has an answer with a label") as error:
        prepare(Data(files=(file,)), Feedback)
    assert "--map label=NAME" in error.value.hint
    likes = write("c.jsonl", [{"prompt": "Q", "response": "A", "rating": 1}])
    assert [row.is_good for row in read([likes], {"label": "rating"})] == [True]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "A", "label": "cardiology"},
        {"messages": [U, A], "label": 3},
        {"instruction": "Q", "output": "positive", "label": "positive"},
    ],
    ids=str,
)
def test_labels_may_be_topics(write, row):
    assert isinstance(only(write, row), Record)


def test_labels_that_one_row_lacks(write):
    rows = [{"prompt": f"Q{n}", "completion": "A", "label": bool(n % 2)} for n in range(4)]
    odd = [{"prompt": "Q", "completion": "A", "label": None}, {"prompt": "Q", "completion": "A"}]
    found = [row for row in read([write("a.jsonl", [*rows, *odd])]) if isinstance(row, Drop)]
    assert [(drop.code, drop.path) for drop in found] == [("null_value", "$.label"), ("missing_field", "$.label")]
