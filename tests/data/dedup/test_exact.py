"""The key by which rows are the same: what it looks through, and what it does not."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from opencc import OpenCC

from dsr1_tune.data.dedup import exact
from dsr1_tune.data.dedup.exact import (
    Prints,
    blocks,
    exact_duplicate,
    exact_key,
    fingerprints,
    first_copies,
    kind_of,
    merge_exact,
)
from dsr1_tune.data.dedup.ngrams import TURN, normalise
from dsr1_tune.data.output import as_output, turns_of, turns_of_row
from dsr1_tune.data.record import Feedback, Message, Place, Preference, Prompt, Record, ToolCall

PLACE = Place("a.json", 1, 0)


def record(question: str = "Q", answer: str = "A", tools: str = "") -> Record:
    return Record((Message("user", question), Message("assistant", answer)), PLACE, tools)


def test_first_copies_are_the_first_of_rows_that_say_the_same() -> None:
    rows = [record(), record("Q ", "\nA"), record("B"), record(), record("b!")]
    assert first_copies(rows).tolist() == [0, 0, 2, 0, 2]
    assert first_copies([]).tolist() == []
    assert first_copies(rows, [True, False, False, False, False]).tolist() == [1, 1, 2, 1, 2]
    drop = exact_duplicate("line 1 (row 0)")
    assert (drop.code, drop.detail, drop.fix) == ("exact_duplicate", "the same as line 1 (row 0)", "remove one of them")


def test_first_copies_look_through_width_case_and_traditional_characters() -> None:
    pairs = [
        ("What is aspirin?", "what is  ＡＳＰＩＲＩＮ？"),
        ("糖尿病患者可以吃什么？", "糖尿病患者可以吃什麼?"),
        ("It is 3.5 mg.", "it is 3.5mg"),
    ]
    for one, other in pairs:
        assert first_copies([record(one), record(other)]).tolist() == [0, 0]
    for one, other in (("3.5 mg", "35 mg"), ("a+b", "a-b"), ("糖", "盐"), ("ab", "abc")):
        assert first_copies([record(one), record(other)]).tolist() == [0, 1]


def test_first_copies_look_through_the_order_of_a_calls_arguments() -> None:
    texts = ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"b": 1, "a": 2}')
    calls = [Message("assistant", "", calls=(ToolCall("f", text),)) for text in texts]
    rows = [Record((Message("user", "Q"), call), PLACE) for call in calls]
    assert first_copies(rows).tolist() == [0, 0, 2]
    written = [turns_of(as_output(row)) for row in rows]
    assert written == [turns_of_row(row) for row in rows] and written[0] == written[1]


def test_first_copies_keep_other_conversations_apart() -> None:
    user, assistant = Message("user", "Q"), Message("assistant", "A")
    other = Message("assistant", "B")
    rows = [
        record(),
        record(question="QA", answer=""),
        record(tools="[1]"),
        record(tools="[2]"),
        Record((Message("system", "S"), user, assistant), PLACE),
        Record((user, assistant, user, assistant), PLACE),
        Prompt((user,), None, PLACE),
        Prompt((user,), "A", PLACE),
        Preference((user,), assistant, other, PLACE),
        Preference((user,), other, assistant, PLACE),
        Feedback((user,), assistant, True, PLACE),
        Feedback((user,), assistant, False, PLACE),
    ]
    assert first_copies(rows).tolist() == list(range(len(rows)))
    assert len({kind_of(row) for row in rows}) == 5


def test_blocks_are_successive_and_whole(monkeypatch) -> None:
    monkeypatch.setattr(exact, "BLOCK_CHARS", 10)
    rows = [record("Q" * number, "A") for number in range(1, 9)]
    parts = list(blocks(rows))
    assert [row for part in parts for row in part] == rows
    assert [len(part) for part in parts] == [4, 2, 2]
    assert first_copies([*rows, rows[2]]).tolist() == [*range(8), 2]


def test_merge_exact_takes_the_lowest_rank() -> None:
    prints = np.array([[1, 1], [2, 2], [1, 1], [2, 2]], np.uint64)
    assert merge_exact(prints.T, np.array([1, 3, 0, 2])).tolist() == [2, 3, 2, 3]


def test_rows_that_say_the_same_have_the_same_prints() -> None:
    rows = [
        [("user", "What is 糖尿病?"), ("assistant", "A disease.")],
        [("user", "what is  糖尿病？"), ("assistant", "a disease")],
        [("user", "What is 糖尿病"), ("assistant", "Another disease.")],
        [("user", "What is 糖尿病 A disease"), ("assistant", "")],
        [("system", "What is 糖尿病?"), ("assistant", "A disease.")],
    ]
    prints = fingerprints(normalise(rows), [record()] * len(rows))
    assert (prints.question[0] == prints.question[1]).all() and (prints.answer[0] == prints.answer[1]).all()
    assert (prints.question[0] == prints.question[2]).all() and (prints.answer[0] != prints.answer[2]).any()
    assert (prints.question[0] != prints.question[3]).any()
    assert (prints.question[0] != prints.question[4]).any()
    # The mark of a turn counts as one character.
    assert prints.answer_chars.tolist() == [9, 9, 15, 1, 9]


def test_a_prompt_has_no_answer() -> None:
    rows = [[("user", "a question")], [], [("user", "b"), ("assistant", "c")]]
    prints = fingerprints(normalise(rows), [record()] * len(rows))
    assert prints.answer_chars.tolist() == [0, 0, 2]
    assert prints.question_chars.tolist() == [10, 0, 2]


# Any two texts, and what makes them another text to read but not to learn from.
TEXTS = st.text(st.characters(exclude_characters="".join(TURN.values()), exclude_categories=["Cs"]), max_size=40)
HAN = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), max_size=20)


def key(question: str, answer: str = "A") -> list[int]:
    row = record(question, answer)
    prints = fingerprints(normalise([turns_of_row(row)]), [row])
    return [int(column[0]) for column in exact_key(prints, np.array([kind_of(row)], np.uint8))]


@given(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789 ", max_size=40), st.sampled_from(["。", " ", "\u3000", "!", "\u200b"])
)
def test_exact_key_ignores_case_width_and_punctuation(text: str, sign: str) -> None:
    wide = "".join(chr(ord(character) + 0xFEE0) if character != " " else "\u3000" for character in text.upper())
    assert key(text) == key(text.upper()) == key(wide) == key(text + sign) == key(sign + text)


@given(HAN)
def test_exact_key_ignores_traditional_characters(text: str) -> None:
    simple = OpenCC("t2s").convert
    # What has a simplified form beyond the BMP stays as it is.
    simplified = "".join(simple(character) if len(simple(character).encode()) == 3 else character for character in text)
    assert key(text) == key(simplified)


@given(TEXTS, TEXTS)
def test_exact_key_is_the_same_for_the_same_normal_form_alone(one: str, other: str) -> None:
    def plain(text: str) -> list[int]:
        codes = normalise([[("user", text)]]).codes
        return list(codes[codes != 0])

    assert (key(one) == key(other)) is (plain(one) == plain(other))
    assert (key("Q", one) == key("Q", other)) is (plain(one) == plain(other))
    together = Prints.concatenate([fingerprints(normalise([turns_of_row(record(one))]), [record(one)])] * 2)
    assert (together.question[0] == together.question[1]).all()
