"""Rules keep what is fine and say why they drop the rest; duplicates are whole conversations."""

from __future__ import annotations

import pytest

from dsr1_tune.data.dedup import Seen, fingerprint
from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record
from dsr1_tune.data.rules import long_enough, not_empty


def record(question="Q", answer="A", index=0, tools=""):
    messages = (Message("user", question, "$.input"), Message("assistant", answer, "$.output"))
    return Record(messages, Place("a.json", index + 1, index), tools)


@pytest.mark.parametrize("answer", ["B", "42", "是", "{}", "...", "ᏣᎳᎩ", "{{name}}", "```\nx = 1\n```"])
def test_short_and_odd_answers_are_kept(answer):
    row = record(answer=answer)
    assert not_empty(row) is row
    assert long_enough(row, 1, 1) is row


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000", "\u200b", " \ufeff\n"])
def test_blank_is_empty(blank):
    assert not_empty(record(answer=blank)) == Drop(
        "empty_answer", "the answer is blank", "write the answer, or remove the row", "$.output"
    )
    assert not_empty(record(question=blank)).code == "empty_question"


def test_every_turn_is_looked_at():
    turns = [Message("user", "Q"), Message("assistant", " ", "$.messages[1].content")] * 2
    assert not_empty(Record(tuple(turns), Place("a", 1, 0))).path == "$.messages[1].content"
    chosen, rejected = Message("assistant", "A"), Message("assistant", "", "$.rejected")
    assert not_empty(Preference((Message("user", "Q"),), chosen, rejected, Place("a", 1, 0))).path == "$.rejected"


def test_long_enough():
    assert long_enough(record("ab", "cd"), 2, 2) == record("ab", "cd")
    drop = long_enough(record("ab", " c "), 2, 2)
    assert (drop.code, drop.detail, drop.path) == ("answer_too_short", "1 characters, fewer than 2: 'c'", "$.output")
    assert long_enough(record("a", "cd"), 2, 2).code == "question_too_short"


def test_only_the_second_copy_is_dropped():
    seen = Seen()
    first = record(index=0)
    assert seen.first_time(first) is first
    drop = seen.first_time(record("Q ", "\nA", index=4))
    assert (drop.code, drop.detail) == ("exact_duplicate", "the same as line 1 (row 0)")
    elsewhere = Record(first.messages, Place("b.json", 9, 8))
    assert seen.first_time(elsewhere).detail == "the same as a.json:1 (row 0)"


def test_what_makes_conversations_differ():
    place = Place("a", 1, 0)
    user, assistant = Message("user", "Q"), Message("assistant", "A")
    rows = [
        record(),
        record(answer="a"),
        record(question="QA", answer=""),
        record(tools="[1]"),
        Record((Message("system", "S"), user, assistant), place),
        Record((user, assistant, user, assistant), place),
        Prompt((user,), None, place),
        Prompt((user,), "A", place),
        Preference((user,), assistant, Message("assistant", "B"), place),
        Preference((user,), Message("assistant", "B"), assistant, place),
    ]
    assert len({fingerprint(row) for row in rows}) == len(rows)
