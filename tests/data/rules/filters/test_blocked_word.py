"""Words of the user's list are found, however they are hidden."""

from __future__ import annotations

import unicodedata

import pytest

from dsr1_tune.data.rules.filters.blocked_word import BlockedWord, blocked_word


@pytest.mark.parametrize("hidden", ["ｓｃａｍ", "sc\u200bam", "SC\u00adAM"])
def test_blocked_word_cannot_hide(record, hidden):
    rule = BlockedWord(words=("scam", "wild goose"))
    assert blocked_word(record("Q", f"It is a {hidden}!"), rule).code == "blocked_word"
    for space in ("  ", "\n", "\u00a0", "\u3000"):
        assert blocked_word(record("Q", f"a wild{space}Goose chase"), rule).code == "blocked_word"
    fine = record("Q", "a wild young goose")
    assert blocked_word(fine, rule) is fine


@pytest.mark.parametrize("many", [False, True])
def test_blocked_word_matches_whole_words(record, many):
    others = tuple(f"word{n}" for n in range(100)) if many else ()
    rule = BlockedWord(words=(*others, "Scam", "赌博", "x"))
    assert blocked_word(record("Q", "It is a scam!"), rule).code == "blocked_word"
    assert "'scam'" in blocked_word(record("a SCAM", "A"), rule).detail
    assert blocked_word(record("Q", "scampi"), rule) == record("Q", "scampi")
    assert blocked_word(record("他参与赌博。", "不好"), rule).path == "$.input"
    assert blocked_word(record("Q", "maximum"), rule) == record("Q", "maximum")


def test_blocked_word_is_found_however_accents_are_stored(record):
    for word, text, fine in (
        ("도박", "그는 도박을 한다", "그는 도로를 걷는다"),
        ("cờ bạc", "nó chơi cờ bạc", "nó chơi cơ bắc"),
    ):
        for given, stored in (("NFC", "NFD"), ("NFD", "NFC")):
            rule = BlockedWord(words=(unicodedata.normalize(given, word),))
            assert blocked_word(record("Q", unicodedata.normalize(stored, text)), rule).code == "blocked_word"
            other = record("Q", unicodedata.normalize(stored, fine))
            assert blocked_word(other, rule) is other
