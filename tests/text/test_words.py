"""Words of a text, in English and Chinese."""

from __future__ import annotations

from dsr1_tune.text.words import content_words, is_chinese, words


def test_words_of_chinese_are_its_characters() -> None:
    assert words("血压120/80 mmHg，Ａ型") == ["血", "压", "120", "80", "mmhg", "a", "型"]
    assert is_chinese("发烧怎么办 fever") and not is_chinese("fever 发烧 what should one do now")


def test_words_leave_out_case_signs_and_width() -> None:
    assert words("The CAT's ＡＢＣ, 3.5!") == ["the", "cat", "s", "abc", "3", "5"]
    assert content_words("The cat") == ["cat"] and content_words("the") == ["the"]
