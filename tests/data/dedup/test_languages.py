"""The language of a row is told from its scripts."""

from __future__ import annotations

import pytest

from dsr1_tune.data.dedup.languages import LANGUAGES, language_codes
from dsr1_tune.data.dedup.ngrams import normalise, tokens


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
def test_language_is_that_of_most_tokens(text: str, language: str) -> None:
    assert LANGUAGES[language_codes(tokens(normalise([[("user", text)]])))[0]] == language
