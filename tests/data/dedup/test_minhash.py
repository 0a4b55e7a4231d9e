"""Near-duplicates: what is one, what only looks like one, and how pairs are found."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dsr1_tune.data.dedup.minhash import Lookup, batches, boilerplate_of, likely_pairs, near_pairs, own_words, verify
from dsr1_tune.data.dedup.ngrams import bands, grams, normalise, signatures, tokens

NONE = Lookup(np.zeros(0, np.uint64))

ZH = (
    "糖尿病患者在日常生活中应当控制饮食，减少糖分摄入，坚持适量运动，"
    "并且按照医生的要求定期监测血糖水平，必要时使用药物。"
)
EN = (
    "Patients with diabetes should watch what they eat, take less sugar, move every day, and measure their blood "
    "glucose as often as their doctor has told them; if need be they take medicine as well."
)


def row(question: str, answer: str):
    return [("user", question), ("assistant", answer)]


def similarity(a, b, boilerplate: Lookup = NONE) -> float:
    found = verify(np.array([[0, 1]]), np.array([0, 1]), [a, b], 0.8, boilerplate)
    return float(found.similarity[0]) if len(found.similarity) else 0.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (row("糖尿病患者要注意什么？", ZH), row("糖尿病患者要注意什么", ZH.replace("必要时", "需要时"))),
        (row("糖尿病患者要注意什么？", ZH), row("请问糖尿病患者要注意什么？谢谢", ZH)),
        (row("What should patients heed?", EN), row("What should patients heed?", EN.replace("told", "advised"))),
        (row("What should patients heed?", EN), row("What shuold patients heed?", EN)),
        (row("What should patients heed?", EN), row("Please: what should patients heed?", EN + " Stay healthy.")),
    ],
)
def test_small_edits_make_near_duplicates(a, b) -> None:
    assert similarity(a, b) >= 0.8


@pytest.mark.parametrize(
    ("a", "b"),
    [
        # other numbers ask something else
        (row("服用 5 毫克的患者要注意什么？", ZH), row("服用 50 毫克的患者要注意什么？", ZH)),
        # a long text before it, and another question behind it
        (row(EN * 3 + " How much sugar?", "Less."), row(EN * 3 + " What does the doctor say about it?", "Less.")),
        (row(ZH * 3 + "糖分应当怎样摄入？", "减少"), row(ZH * 3 + "血糖水平是由谁来监测的呢？", "患者")),
        # another drug, and a short answer that says nothing about it
        (
            row("Is it safe to take amoxicillin with alcohol?", "Yes."),
            row("Is it safe to take ibuprofen with alcohol?", "Yes."),
        ),
        # another drug, and a long answer for both
        (row("Is ibuprofen safe in pregnancy?", EN), row("Is warfarin safe in pregnancy?", EN)),
        (row("孕妇可以吃布洛芬吗？", ZH), row("孕妇可以吃阿司匹林吗？", ZH)),
        (row("hi", EN), row("Who are you?", EN)),
        # the same question, another answer
        (row(EN * 2, "Yes, they should."), row(EN * 2, "No; ask a doctor.")),
    ],
)
def test_other_questions_are_no_near_duplicates(a, b) -> None:
    assert similarity(a, b) == 0


def test_a_shared_preamble_does_not_count() -> None:
    random.seed(2)
    topics = [f"topic{number} part{number * 7 % 50} piece{number * 3 % 31}" for number in range(40)]
    rows = [row(f"{EN}\nNow explain {topic}", f"It is about {topic}, you see") for topic in topics]
    pieces = grams(tokens(normalise(rows)))
    known = Lookup(boilerplate_of(pieces))
    own = own_words(pieces, known)
    # The preamble is gone, the answers are not.
    assert own[pieces.is_answer].all()
    assert own.sum() < 0.4 * len(own)
    assert not own_words(grams(tokens(normalise([row(EN, "")]))), NONE).sum() < 10
    # A row that is nothing but the preamble keeps it.
    assert own_words(grams(tokens(normalise([[("user", EN)]]))), known).all()


def hashed(rows):
    pieces = grams(tokens(normalise(rows)))
    signs = signatures(pieces)
    return bands(signs), signs.astype(np.uint8)


def test_pairs_are_found_among_many() -> None:
    random.seed(3)
    words = [f"w{number}" for number in range(5000)]
    texts = [random.choices(words, k=60) for _ in range(2000)]
    rows = [row(" ".join(text[:10]), " ".join(text[10:])) for text in texts]
    for number in range(100):
        text = list(texts[number])
        text[30] = "changed"
        rows.append(row(" ".join(text[:10]), " ".join(text[10:])))
    in_bands, sketches = hashed(rows)
    everyone = np.arange(len(rows))
    pairs = likely_pairs(lambda band: in_bands[band], lambda some: sketches[some], everyone, 0.8)
    assert {(a, b) for a, b in pairs.tolist()} == {(number, 2000 + number) for number in range(100)}


def test_a_thousand_copies_cost_thousands_of_pairs() -> None:
    in_bands, sketches = hashed([row("the same question", "the same answer for all")] * 1000)
    pairs = likely_pairs(lambda band: in_bands[band], lambda some: sketches[some], np.arange(1000), 0.8)
    assert 999 <= len(pairs) <= 4000


def test_near_pairs_are_of_one_kind() -> None:
    rows = [row("What should patients heed?", EN), row("What should patients heed?", EN.replace("told", "advised"))]
    in_bands, sketches = hashed(rows)

    def near(sorts: list[int]) -> list[list[int]]:
        return near_pairs(
            lambda band: in_bands[band],
            lambda some: sketches[some],
            np.arange(2),
            np.array(sorts)[:, None],
            0.8,
            lambda pairs: verify(pairs, np.arange(2), rows, 0.8, NONE),
        ).pairs.tolist()

    assert near([0, 0]) == [[0, 1]] and near([0, 1]) == []


def test_batches_hold_all_pairs_in_their_order() -> None:
    pairs = np.stack((np.arange(1000), np.arange(1, 1001)), axis=1)
    parts = list(batches(pairs, np.full(1001, 10)))
    assert np.concatenate(parts).tolist() == pairs.tolist() and len(parts) == 4
    long = list(batches(pairs, np.full(1001, 1 << 20)))
    assert max(map(len, long)) <= 2 and np.concatenate(long).tolist() == pairs.tolist()
    assert list(batches(pairs[:0], np.zeros(0, np.int64))) == []
