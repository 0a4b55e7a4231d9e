"""Rows in memory are found alike as those of a cleaned file are."""

from __future__ import annotations

import numpy as np

from dsr1_tune.data.dedup import exact
from dsr1_tune.data.dedup.languages import LANGUAGES
from dsr1_tune.data.dedup.minhash import Lookup
from dsr1_tune.data.dedup.row_hashes import Alike, RowHashes, learn_boilerplate, taken_apart
from dsr1_tune.data.output import turns_of_row
from dsr1_tune.data.record import Message, Place, Preference, Record

ANSWER = "Keep the arm still, cool it for ten minutes at a time, and see a doctor if the pain has not gone by morning."
PREAMBLE = "You are a careful assistant of a large clinic, who answers in plain words and never diagnoses anybody. "


def record(question: str, answer: str, index: int = 0, file: str = "a") -> Record:
    return Record((Message("user", question), Message("assistant", answer)), Place(file, index + 1, index))


ROWS = [
    record("What helps against a sprain?", ANSWER),
    record("What helps against a sprain?", ANSWER.replace("morning", "evening")),
    record("Please, what helps against a sprain? Thank you.", ANSWER),
    record("What helps against a sprain?", "Rest."),  # another answer to the same question
    record("What helps against a burn?", "Cold running water."),
    record("烫伤了怎么办？", "用流动的凉水冲洗二十分钟。"),
    record("烫傷了怎麼辦", "用流動的涼水沖洗二十分鐘"),
]


def test_rows_that_ask_the_same_or_are_near_copies_are_alike() -> None:
    alike = Alike.of(ROWS)
    groups = alike.groups.tolist()
    assert groups[0] == groups[1] == groups[2] == groups[3] and groups[5] == groups[6]
    assert len({groups[0], groups[4], groups[5]}) == 3
    assert [LANGUAGES[code] for code in alike.languages.tolist()] == ["latin"] * 5 + ["zh"] * 2
    assert alike.num_chars[3] < alike.num_chars[0]
    assert Alike.of([]).groups.tolist() == []


def test_rows_are_alike_whatever_the_blocks(monkeypatch) -> None:
    whole = Alike.of(ROWS)
    monkeypatch.setattr(exact, "BLOCK_CHARS", 50)
    parts = Alike.of(ROWS)
    assert whole.groups.tolist() == parts.groups.tolist() and whole.num_chars.tolist() == parts.num_chars.tolist()


def test_a_prompt_of_several_pairs_is_one_group() -> None:
    prompt = (Message("user", "Which river is the longer one?"),)
    pairs = [
        Preference(prompt, Message("assistant", good), Message("assistant", "No."), Place("a", number + 1, number))
        for number, good in enumerate(("The first.", "It is the second, by far.", "Both are as long."))
    ]
    assert len(set(Alike.of(pairs).groups.tolist())) == 1


def test_a_shared_preamble_makes_no_rows_alike() -> None:
    named = "abcdefghijklmnopqrstuv"
    rows = [record(f"{PREAMBLE}What is {name}ox{name}?", f"Some {name}ew thing.") for name in named]
    assert len(learn_boilerplate(rows)) > 0 and len(learn_boilerplate(rows[:5])) == 0
    assert len(set(Alike.of(rows).groups.tolist())) == 22


def test_row_hashes_have_no_sketches_where_near_copies_are_not_looked_for() -> None:
    text, found = taken_apart([turns_of_row(row) for row in ROWS])
    without = RowHashes.of(ROWS, text, found, None)
    having = RowHashes.of(ROWS, text, found, Lookup(np.zeros(0, np.uint64)))
    assert (without.sketches.shape, without.bands.shape) == ((7, 0), (0, 7))
    assert (having.sketches.shape, having.bands.shape) == ((7, 120), (30, 7))
    assert (without.prints.question == having.prints.question).all() and having.kinds.tolist() == [0] * 7
