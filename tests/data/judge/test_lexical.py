"""Scores without a model, against plain Python; whatever the portions the rows come in."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest

from dsr1_tune.data.judge.lexical import MIN_ODD_CHARS, Counts, bits, overlap, surprise
from dsr1_tune.data.judge.score_cache import Pair

PAIRS: list[Pair] = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Name a river in Germany.", "The Rhine is a river in Germany, and a long one."),
    ("法国的首都是哪里？", "法国的首都是巴黎。"),
    ("怎样治疗感冒？", "多喝水，多休息。"),
    ("¿Qué es un árbol?", "Un árbol es una planta."),
    ("สวัสดีครับ", "สวัสดี"),
    ("???", "!!!"),
]


def counts_of(pairs: list[Pair], portion: int = 100) -> Counts:
    counts = Counts()
    for start in range(0, len(pairs), portion):
        chunk = pairs[start : start + portion]
        counts.add(chunk, np.arange(start, start + len(chunk)))
    return counts


def plain_words(text: str) -> set[str]:
    """Words by their first five letters, and pairs of neighbouring characters of unspaced scripts."""
    text = re.sub(r"\d", "0", text.lower())
    unspaced = "\u0e00-\u10ff\u3040-\u30ff\u3400-\u9fff"
    spaced = re.findall(rf"(?:(?![{unspaced}])\w)+", text)
    runs = re.findall(rf"[{unspaced}]+", text)
    return {word[:5] for word in spaced} | {run[i : i + 2] for run in runs for i in range(len(run) - 1)}


def test_lexical_overlap_is_the_weighted_share_of_the_smaller_side() -> None:
    seen = Counter(word for pair in PAIRS for text in pair for word in plain_words(text))
    total = 2 * len(PAIRS)

    def weigh(words: set[str]) -> float:
        return sum(math.log((total + 1) / (seen[word] + 0.5)) ** 2 for word in words)

    found = overlap(PAIRS, counts_of(PAIRS))
    for (question, answer), value in zip(PAIRS[:-1], found, strict=False):
        asked, said = plain_words(question), plain_words(answer)
        assert value == pytest.approx(weigh(asked & said) / min(weigh(asked), weigh(said)), rel=1e-5)


def test_lexical_no_words_have_no_overlap() -> None:
    assert np.isnan(overlap(PAIRS, counts_of(PAIRS))[-1])


def test_lexical_chinese_needs_no_spaces() -> None:
    fitting, other = overlap([PAIRS[2], (PAIRS[2][0], PAIRS[3][1])], counts_of(PAIRS))
    assert fitting > 0.5 and other == 0


def test_lexical_rows_score_the_same_in_any_portions() -> None:
    whole, parts = counts_of(PAIRS), counts_of(PAIRS, portion=2)
    np.testing.assert_array_equal(whole.texts_with, parts.texts_with)
    np.testing.assert_array_equal(whole.triples, parts.triples)
    costs, numbers = bits(PAIRS, whole, np.arange(len(PAIRS)))
    for row, pair in enumerate(PAIRS):
        alone_costs, alone_numbers = bits([pair], parts, np.array([row]))
        np.testing.assert_allclose(alone_costs[0], costs[row], rtol=1e-6)
        np.testing.assert_array_equal(alone_numbers[0], numbers[row])


def test_lexical_no_answer_vouches_for_itself() -> None:
    odd = "zqxj vkwp qqzz jxkv zqxj vkwp"
    pairs = [("q", "the cat sat on the mat and the dog ran")] * 20
    once, numbers = bits([("q", odd)], counts_of([*pairs, ("q", odd)]), np.array([20]))
    never, _ = bits([("q", odd)], counts_of(pairs), np.array([20]))
    assert once.sum() / numbers.sum() == pytest.approx(never.sum() / numbers.sum(), abs=0.05)


def excess(texts: list[str], pairs: list[Pair]) -> np.ndarray:
    counts = counts_of(pairs)
    costs, numbers = bits(pairs, counts, np.arange(len(pairs)))
    usual = costs.sum(axis=0) / np.maximum(numbers.sum(axis=0), 1)
    return surprise(*bits([("", text) for text in texts], counts, np.zeros(len(texts), int)), usual)


def test_lexical_mash_is_no_easy_chinese() -> None:
    """Letters cost fewer bits than Han characters: they are measured by what letters usually cost."""
    answers = ["多喝水，多休息，注意保暖 (vitamin C)。", "建议去医院做一次检查 (CT scan)，再决定。"]
    pairs = [("问", answers[i % 2]) for i in range(200)]
    natural, mash = excess([answers[0], "asdkjh qwlekj zxmcnb poiuy"], pairs)
    assert mash > natural + 0.5


def test_lexical_digits_are_no_oddity() -> None:
    pairs = [("q", f"The total is {i * 37} dollars in the year {1900 + i}.") for i in range(100)]
    seen, unseen = excess(["The total is 111 dollars in the year 1999.", pairs[3][1].replace("1903", "7777")], pairs)
    assert unseen == pytest.approx(seen, abs=0.3)


def test_lexical_very_short_answers_have_no_surprise() -> None:
    texts = ["B", "42", "是", "x" * (MIN_ODD_CHARS - 1), "x" * MIN_ODD_CHARS]
    assert np.isnan(excess(texts, PAIRS)).tolist() == [True] * 4 + [False]


def test_lexical_odd_characters_are_counted_as_they_are() -> None:
    texts = [
        "\ud800 lone surrogate",
        "line\u2028separator \x85 here",
        "a\0b nul inside",
        "İstanbul İİİİİİ",
        "👩‍👩‍👧 family",
    ]
    pairs = [("q", text) for text in texts]
    costs, numbers = bits(pairs, counts_of(pairs), np.arange(len(pairs)))
    assert numbers.sum(axis=1).tolist() == [len(text.lower()) for text in texts]
    assert np.isfinite(costs).all()


def test_lexical_no_rows() -> None:
    assert len(overlap([], counts_of(PAIRS))) == 0
    assert bits([], counts_of(PAIRS), np.zeros(0, int))[0].shape == (0, 3)


def test_lexical_chances_of_a_character_sum_to_no_more_than_one() -> None:
    pairs = [("q", "abcabcabdabc"), ("q", "abcabcabdabc")] * 10
    counts = counts_of(pairs)
    for before in ("", "a", "ab", "zz"):
        texts = [("q", before + char) for char in "abcdefgh"]
        whole = bits(texts, counts, np.zeros(8, int))[0].sum(axis=1)
        prefix = bits([("q", before)], counts, np.zeros(1, int))[0].sum() if before else 0.0
        assert 0 < (2.0 ** -(whole - prefix)).sum() <= 1.0 + 1e-6
