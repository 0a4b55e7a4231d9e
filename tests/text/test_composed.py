"""One form for texts that look the same, whatever characters they are stored in."""

from __future__ import annotations

import unicodedata

import pytest

from dsr1_tune.text.composed import composed


@pytest.mark.parametrize("text", ["한국의 수도는 서울이다", "Thủ đô của Việt Nam", "où est la forêt ?", "がぎぱ"])
def test_accents_and_syllables_are_composed(text: str) -> None:
    apart = unicodedata.normalize("NFD", text)
    assert apart != text and composed(apart) == text
    half = len(text) // 2
    assert composed(unicodedata.normalize("NFD", text[:half]) + text[half:]) == text
    assert composed(text) is text


def test_the_order_of_accents_does_not_count() -> None:
    assert composed("e\u0323\u0302") == composed("e\u0302\u0323") == composed("\u00ea\u0323") == "\u1ec7"


def test_half_width_kana_are_composed_and_nothing_else_changes_width() -> None:
    assert composed("ｶﾞｷﾞﾊﾟ") == "ガギパ"
    assert composed("ｱﾞ ＡＢＣ，ﬁ ½ ①") == "ア\u3099 ＡＢＣ，ﬁ ½ ①"
    assert composed("ASCII") == "ASCII" and composed("糖尿病，\udcff😀") == "糖尿病，\udcff😀"
