"""Normal form, tokens, n-grams and MinHash, against the plain formulas."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.data.dedup.ngrams import TURN, bands, grams, long_grams, normalise, signatures, tokens


def said(*texts: str):
    return normalise([[("user", text)] for text in texts])


def normal(text: str) -> str:
    codes = said(text).codes
    return codes[codes != 0].tobytes().decode("utf-16-le")[1:]


def of_row(pieces, row: int) -> list[int]:
    return pieces.hashes[pieces.bounds[row] : pieces.bounds[row + 1]].tolist()


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
        ("薴苧\u2fc6", "苎苎麦"),  # of a traditional character that becomes one, and of a radical
    ],
)
def test_normal_form(text: str, plain: str) -> None:
    assert normal(text) == plain


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
    assert [of_row(pieces, row) for row in range(len(texts))] == alone
    # Texts too short for an n-gram are not all the same.
    assert len({tuple(one) for one in (alone[1], alone[2], alone[7])}) == 3
    assert np.diff(long_grams(found).bounds).tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 4]


def test_minhash_estimates_the_jaccard_index() -> None:
    random.seed(1)
    words = [f"word{number}" for number in range(3000)]
    text = random.sample(words, 400)
    other = [word if random.random() > 0.05 else random.choice(words) for word in text]
    pieces = grams(tokens(said(" ".join(text), " ".join(other))))
    a, b = set(of_row(pieces, 0)), set(of_row(pieces, 1))
    signs = signatures(pieces)
    assert signs.shape == (2, 120) and bands(signs).shape == (30, 2)
    assert abs((signs[0] == signs[1]).mean() - len(a & b) / len(a | b)) < 0.13


# Any text at all: letters of many scripts, halves of characters, signs, blanks.
TEXTS = st.text(st.characters(exclude_characters="".join(TURN.values())), max_size=60)
ROWS = st.lists(st.lists(TEXTS, min_size=1, max_size=3), min_size=1, max_size=5)


def turns(texts: list[str]) -> list[tuple[str, str]]:
    return [("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


@given(ROWS)
def test_any_row_is_hashed_by_its_own_text_alone(rows: list[list[str]]) -> None:
    """What stands before or behind a row in the block changes none of its tokens and n-grams."""
    found = tokens(normalise([turns(row) for row in rows]))
    pieces = grams(found)
    for number, row in enumerate(rows):
        alone = tokens(normalise([turns(row)]))
        here = slice(found.bounds[number], found.bounds[number + 1])
        assert found.hashes[here].tolist() == alone.hashes.tolist()
        assert found.is_answer[here].tolist() == alone.is_answer.tolist()
        assert of_row(pieces, number) == grams(alone).hashes.tolist()


@given(TEXTS)
def test_normalising_a_normalised_text_changes_nothing(text: str) -> None:
    once = said(text).codes
    plain = once[once != 0].tobytes().decode("utf-16-le", "surrogatepass")[1:]
    again = said(plain).codes
    assert again[again != 0].tolist() == once[once != 0].tolist()


@given(st.text("患者医生药物血糖饮食", max_size=30), st.lists(st.text("abcdefg", min_size=1), max_size=20))
def test_rows_have_as_many_ngrams_as_their_windows(han: str, words: list[str]) -> None:
    pieces = grams(tokens(said(han, " ".join(words))))
    expected = [max(1, len(han) - 3) if han else 0, max(1, len(words) - 1) if words else 0]
    assert np.diff(pieces.bounds).tolist() == expected
