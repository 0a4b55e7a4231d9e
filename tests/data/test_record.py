"""The kinds of rows, and the drops that say what is wrong with one."""

from __future__ import annotations

from dsr1_tune.data.record import (
    Drop,
    Feedback,
    Message,
    Place,
    Preference,
    Prompt,
    Record,
    ToolCall,
    messages_of,
    prompt_of,
)

PLACE = Place("a.json", 3, 2)
SYSTEM, FIRST, SAID, LAST = (
    Message("system", "S"),
    Message("user", "Q1"),
    Message("assistant", "A1"),
    Message("user", "Q2"),
)
GOOD, BAD = Message("assistant", "A2"), Message("assistant", "B2")


def test_record_answers_the_last_question() -> None:
    record = Record((SYSTEM, FIRST, SAID, LAST, GOOD), PLACE)
    assert (record.question, record.answer) == ("Q2", "A2")
    assert prompt_of(record) == record.messages[:-1] and messages_of(record) == record.messages


def test_messages_and_prompt_of_every_kind() -> None:
    asked = (SYSTEM, FIRST)
    assert messages_of(Preference(asked, GOOD, BAD, PLACE)) == (*asked, GOOD, BAD)
    assert messages_of(Feedback(asked, BAD, False, PLACE)) == (*asked, BAD)
    assert messages_of(Prompt(asked, "42", PLACE)) == asked
    for row in (Preference(asked, GOOD, BAD, PLACE), Feedback(asked, BAD, False, PLACE), Prompt(asked, None, PLACE)):
        assert prompt_of(row) == asked


def test_drop_says_where_it_happened() -> None:
    drop = Drop("too_long", "2000 tokens", "cut it", "$.output")
    assert drop.as_json()["file"] is None
    placed = drop.at(PLACE, "encode", {"input": "Q"})
    assert placed.row == {"input": "Q"} and "row" not in placed.as_json()
    assert placed.as_json() == {
        "file": "a.json",
        "line": 3,
        "index": 2,
        "stage": "encode",
        "code": "too_long",
        "path": "$.output",
        "detail": "2000 tokens",
        "fix": "cut it",
    }
    assert str(PLACE) == "a.json:3"


def test_calls_say_the_same_whatever_the_order_of_their_arguments() -> None:
    one, other, third = (
        Message("assistant", "", calls=(ToolCall("f", text),))
        for text in ('{"a": 1, "b": {"c": 2, "d": "é"}}', '{"b":{"d":"\\u00e9","c":2},"a":1}', '{"a": 2, "b": 1}')
    )
    assert one.said == other.said != third.said
    assert one.calls != other.calls
