"""What is odd about the calls of a row that is kept, and about a row of which nothing is learned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsr1_tune.data.record import Feedback, Message, Place, Preference, Prompt, Record, ToolCall
from dsr1_tune.data.row_check import RowCheck
from dsr1_tune.data.rules.remarks import remarks_on_calls, remarks_on_masks, remarks_on_unread_calls

PLACE, ASK = Place("a", 1, 0), Message("user", "Q", "$.messages[0].content")
SCHEMA = {"type": "object", "properties": {"city": {}, "n": {}}, "required": ["city"]}


def tools(**schema: Any) -> str:
    return json.dumps([{"name": "seek", "parameters": {**SCHEMA, **schema}}])


def calling(*calls: tuple[str, Any]) -> Message:
    said = tuple(ToolCall(name, json.dumps(arguments)) for name, arguments in calls)
    return Message("assistant", "", "$.messages[1]", said)


CASES: list[tuple[list[tuple[str, Any]], list[str]]] = [
    ([("seek", {"city": "Oslo"})], []),
    ([("seek", {"city": None, "n": 1})], []),
    ([("look", {})], ["unknown_function"]),
    ([("seek", {"town": "Oslo", "city": "x"})], ["unfit_arguments"]),
    ([("seek", {"n": 1})], ["unfit_arguments"]),
    ([("seek", {}), ("seek", {"town": 1}), ("look", {}), ("see", {})], ["unfit_arguments", "unknown_function"]),
]


@pytest.mark.parametrize(("calls", "codes"), CASES, ids=str)
def test_calls_that_do_not_fit_the_tools_are_remarked_on_once(calls: Any, codes: list[str]) -> None:
    said = calling(*calls)
    fine = calling(("seek", {"city": "Oslo"}))
    rows = [
        Record((ASK, said), PLACE, tools()),
        Prompt((ASK, said, ASK), None, PLACE, tools()),
        Preference((ASK,), said, fine, PLACE, tools()),
        Feedback((ASK,), said, True, PLACE, tools()),
    ]
    assert [[note.code for note in remarks_on_calls(row)] for row in rows] == [codes] * 4
    worse = [Preference((ASK,), fine, said, PLACE, tools()), Feedback((ASK,), said, False, PLACE, tools())]
    assert [remarks_on_calls(row) for row in (*worse, Record((ASK, said), PLACE))] == [()] * 3


def test_calls_with_arguments_that_the_schema_leaves_open_fit() -> None:
    said = Record((ASK, calling(("seek", {"city": "Oslo", "town": "x"}))), PLACE, tools(additionalProperties=True))
    assert remarks_on_calls(said) == ()


def test_remarks_say_what_does_not_fit() -> None:
    (note,) = remarks_on_calls(Record((ASK, calling(("look", {}))), PLACE, tools()))
    assert "'look'" in note.detail and "'seek'" in note.detail and note.path == "$.messages[1]"
    (note,) = remarks_on_calls(Record((ASK, calling(("seek", {"town": 1}))), PLACE, tools()))
    assert "with 'town', where its arguments are 'city', 'n'" in note.detail and "without 'city'" in note.detail


def test_record_of_which_its_author_lets_nothing_be_learned_is_remarked_on() -> None:
    shown, learned = Message("assistant", "A", "$.a", is_learned=False), Message("assistant", "B")
    (note,) = remarks_on_masks(Record((ASK, shown), PLACE))
    assert (note.code, note.path) == ("nothing_to_learn", "$.a")
    assert remarks_on_masks(Record((ASK, shown, ASK, learned), PLACE)) == ()
    assert remarks_on_masks(Record((ASK, learned, ASK, shown), PLACE)) == ()
    assert remarks_on_masks(Preference((ASK,), shown, learned, PLACE)) == ()


def test_broken_call_in_tags_is_remarked_on_once_where_it_is_learned_and_should_be_good() -> None:
    text = '<tool_call>\n{"name": "seek", "argu'
    broken, fine = Message("assistant", text, "$.b"), Message("assistant", "A")
    (note,) = remarks_on_unread_calls(Record((ASK, broken, ASK, broken), PLACE))
    assert (note.code, note.path) == ("unread_call", "$.b") and "argu" in note.detail and note.fix
    learned = [Preference((ASK,), broken, fine, PLACE), Feedback((ASK,), broken, True, PLACE)]
    assert all(map(remarks_on_unread_calls, learned))
    shown = Message("assistant", text, is_learned=False)
    others = [Preference((ASK,), fine, broken, PLACE), Feedback((ASK,), broken, False, PLACE)]
    others += [Record((ASK, shown, ASK, fine), PLACE), Record((Message("user", text), fine), PLACE)]
    assert not any(map(remarks_on_unread_calls, others))


def test_every_way_of_reading_rows_brings_the_remarks() -> None:
    row = Record((ASK, Message("assistant", "A", is_learned=False, calls=calling(("look", {})).calls)), PLACE, tools())
    checked = RowCheck(None).check(row)
    assert checked.row is row
    assert {note.code for note in checked.notes} == {"nothing_to_learn", "unknown_function"}
