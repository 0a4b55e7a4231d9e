"""Which rows are copies, and which copy stays."""

from __future__ import annotations

import numpy as np

from dsr1_tune.data.dedup.clusters import (
    answered_otherwise,
    contradictions,
    group_alike,
    joined,
    merge_near,
    preference_order,
)
from dsr1_tune.data.dedup.exact import Prints, fingerprints
from dsr1_tune.data.dedup.minhash import Verified
from dsr1_tune.data.dedup.ngrams import normalise
from dsr1_tune.data.record import Message, Place, Record

EN = (
    "Patients with diabetes should watch what they eat, take less sugar, move every day, and measure their blood "
    "glucose as often as their doctor has told them; if need be they take medicine as well."
)


def row(question: str, answer: str):
    return [("user", question), ("assistant", answer)]


def prints_of(rows, tools: str = "") -> Prints:
    messages = (Message("user", "Q"), Message("assistant", "A"))
    return fingerprints(normalise(rows), [Record(messages, Place("a", 1, 0), tools)] * len(rows))


def test_preference_order_puts_the_better_row_first() -> None:
    assert preference_order(np.array([3, 9, 9, 1]), "better", np.ones(4, bool)).tolist() == [2, 0, 1, 3]
    assert preference_order(np.array([3, 9, 9, 1]), "first", np.array([True, False, True, True])).tolist() == [
        0,
        3,
        1,
        2,
    ]


def test_merge_near_merges_every_row_only_where_it_is_similar_to_the_one_that_stays() -> None:
    similar = {(0, 1), (1, 2), (2, 3)}

    def compare(pairs):
        known = np.array([tuple(pair) in similar for pair in pairs.tolist()])
        return Verified(pairs[known], np.full(known.sum(), 0.9))

    verified = Verified(np.array(sorted(similar)), np.array([0.9, 0.85, 0.8]))
    merged = merge_near(verified, np.array([0, 1, 2, 3]), compare)
    assert merged == [(1, 0, 0.9), (3, 2, 0.8)]


def test_contradictions_are_short_answers_that_cannot_all_be_right() -> None:
    rows = [
        row("What is the capital of Australia?", "Canberra"),
        row("What is the capital of australia", "Sydney"),
        row("What is the capital of France?", "Paris"),
        row("What is the capital of France?", "Paris, on the Seine."),
        row("Write a story about a dog.", EN),
        row("Write a story about a dog.", EN.replace("sugar", "meat")),
        row("Go on", "Yes"),
        row("Go on", "No"),
        row("这位患者可以吃吗？", "可以"),
        row("这位患者可以吃吗？", "不可以"),
        row("这位患者可以吃吗？", "可以的。"),
        row("How many are there?", "5"),
        row("How many are there?", "50"),
    ]
    groups = answered_otherwise(prints_of(rows), np.arange(len(rows)))
    assert sorted(map(list, groups)) == [[0, 1], [2, 3], [8, 9, 10], [11, 12]]
    found = contradictions(groups, lambda members: [rows[member][1][1] for member in members])
    assert found == {0: 1, 1: 0, 8: 9, 9: 8, 10: 9, 11: 12, 12: 11}


def test_group_alike_gives_rows_that_ask_the_same_one_number() -> None:
    questions = np.array([[1, 1], [2, 2], [1, 1], [3, 3], [4, 4]], np.uint64)
    alike = group_alike(questions, np.array([[2, 3]]))
    assert alike[0] == alike[2] == alike[3] and len({alike[0], alike[1], alike[4]}) == 3
    assert group_alike(questions, np.zeros((0, 2), np.int64)).tolist()[2] == 0


def test_contradictions_need_the_same_tools() -> None:
    rows = [row("What is the capital of Australia?", answer) for answer in ("Canberra", "Sydney")]
    plain, tools = prints_of(rows[:1]), prints_of(rows[1:], "[1]")
    assert answered_otherwise(Prints.concatenate([plain, tools]), np.arange(2)) == []
    assert len(answered_otherwise(prints_of(rows), np.arange(2))) == 1


def test_joined_names_each_row_that_another_stands_for() -> None:
    assert joined(np.array([0, 0, 2, 0])).tolist() == [[0, 1], [0, 3]]
