"""Normal form, tokens, n-grams and MinHash, against the plain formulas."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dsr1_tune.data.dedup.languages import LANGUAGES, language_codes
from dsr1_tune.data.dedup.ngrams import bands, fingerprints, grams, long_grams, normalise, signatures, tokens


def said(*texts: str):
    return normalise([[("user", text)] for text in texts])


def normal(text: str) -> str:
    codes = said(text).codes
    return codes[codes != 0].tobytes().decode("utf-16-le")[1:]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Hello,  World!", "helloworld"),
        ("ＡＢＣ１２３", "abc123"),
        ("臺灣的醫療", "台湾的医疗"),
        ("你好，世界。", "你好世界"),
        ("3.5 mg, 35 mg", "3.5mg35mg"),
        ("3 * 4 = 12", "3*4=12"),
        ("ﬁne", "ﬁne"),  # a ligature is two letters, and stays one sign
        ("𠀀 and 😀", "𠀀and😀"),
        ("\u200b\ufeff", ""),
    ],
)
def test_normal_form(text: str, plain: str) -> None:
    assert normal(text) == plain


def test_rows_that_say_the_same_have_the_same_prints() -> None:
    rows = [
        [("user", "What is 糖尿病?"), ("assistant", "A disease.")],
        [("user", "what is  糖尿病？"), ("assistant", "a disease")],
        [("user", "What is 糖尿病"), ("assistant", "Another disease.")],
        [("user", "What is 糖尿病 A disease"), ("assistant", "")],
        [("system", "What is 糖尿病?"), ("assistant", "A disease.")],
    ]
    prints = fingerprints(normalise(rows))
    assert (prints.question[0] == prints.question[1]).all() and (prints.answer[0] == prints.answer[1]).all()
    assert (prints.question[0] == prints.question[2]).all() and (prints.answer[0] != prints.answer[2]).any()
    assert (prints.question[0] != prints.question[3]).any()
    assert (prints.question[0] != prints.question[4]).any()
    # The mark of a turn counts as one character.
    assert prints.answer_chars.tolist() == [9, 9, 15, 1, 9]


def test_a_prompt_has_no_answer() -> None:
    prints = fingerprints(normalise([[("user", "a question")], [], [("user", "b"), ("assistant", "c")]]))
    assert prints.answer_chars.tolist() == [0, 0, 2]
    assert prints.question_chars.tolist() == [10, 0, 2]


def test_tokens_are_cjk_characters_and_words() -> None:
    found = tokens(said("糖尿病 type 2", "TYPE-2 糖"))
    assert np.diff(found.bounds).tolist() == [5, 2]
    assert found.is_cjk.tolist() == [True, True, True, False, False, False, True]
    words = tokens(said("Type two", "TYPE, two!", "two type"))
    first, second, third = (words.hashes[a:b].tolist() for a, b in zip(words.bounds, words.bounds[1:], strict=False))
    assert first == second and third == first[::-1]


def plain_grams(row: list[int], cjk: list[bool]) -> int:
    """How many n-grams a row has, by the definition."""
    sizes = [4 if is_cjk else 2 for is_cjk in cjk]
    return sum(start + size <= len(row) for start, size in enumerate(sizes)) or (1 if row else 0)


def test_grams_stay_inside_their_row() -> None:
    texts = [
        "",
        "是",
        "yes",
        "a b c",
        "糖尿病是什么",
        "mixed 糖尿病 text",
        "。！？",
        "x",
        "一二三四五六七八九十一二三四五六",
    ]
    found = tokens(said(*texts))
    pieces = grams(found)
    per_row = [
        plain_grams(found.hashes[a:b].tolist(), found.is_cjk[a:b].tolist())
        for a, b in zip(found.bounds, found.bounds[1:], strict=False)
    ]
    assert np.diff(pieces.bounds).tolist() == per_row
    alone = [grams(tokens(said(text))).hashes.tolist() for text in texts]
    assert [pieces.of(row).tolist() for row in range(len(texts))] == alone
    # Texts too short for an n-gram are not all the same.
    assert len({tuple(one) for one in (alone[1], alone[2], alone[7])}) == 3
    assert np.diff(long_grams(found).bounds).tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 4]


def test_minhash_estimates_the_jaccard_index() -> None:
    random.seed(1)
    words = [f"word{number}" for number in range(3000)]
    text = random.sample(words, 400)
    other = [word if random.random() > 0.05 else random.choice(words) for word in text]
    pieces = grams(tokens(said(" ".join(text), " ".join(other))))
    a, b = set(pieces.of(0).tolist()), set(pieces.of(1).tolist())
    signs = signatures(pieces)
    assert signs.shape == (2, 120) and bands(signs).shape == (30, 2)
    assert abs((signs[0] == signs[1]).mean() - len(a & b) / len(a | b)) < 0.13


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is diabetes?", "latin"),
        ("糖尿病是什么？", "zh"),
        ("iPhone 的电池坏了怎么办", "zh"),
        ("糖尿病とは何ですか", "ja"),
        ("당뇨병이란", "ko"),
        ("Что это такое", "cyrillic"),
        ("ما هو", "arabic"),
        ("โรคเบาหวาน", "other"),
        ("12 + 3", "none"),
        ("", "none"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert LANGUAGES[language_codes(tokens(said(text)))[0]] == language
