"""Exact duplicates are whole conversations, wherever they stand."""

from __future__ import annotations

from dsr1_tune.data.dedup.exact import Seen, fingerprint
from dsr1_tune.data.record import Message, Place, Preference, Prompt, Record


def record(question="Q", answer="A", index=0, tools=""):
    messages = (Message("user", question, "$.input"), Message("assistant", answer, "$.output"))
    return Record(messages, Place("a.json", index + 1, index), tools)


def test_seen_drops_only_the_second_copy():
    seen = Seen()
    first = record(index=0)
    assert seen.first_time(first) is first
    drop = seen.first_time(record("Q ", "\nA", index=4))
    assert (drop.code, drop.detail) == ("exact_duplicate", "the same as line 1 (row 0)")
    elsewhere = Record(first.messages, Place("b.json", 9, 8))
    assert seen.first_time(elsewhere).detail == "the same as a.json:1 (row 0)"


def test_fingerprint_tells_different_conversations_apart():
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
