"""Questions and answers that are too short or too long are dropped."""

from __future__ import annotations

from dsr1_tune.data.rules.filters.lengths import Lengths, lengths


def test_lengths_drop_what_is_too_short_or_too_long(record):
    assert lengths(record("ab", "cd"), Lengths(max_chars=2)) == record("ab", "cd")
    drop = lengths(record("abc", "cd"), Lengths(max_chars=2))
    assert (drop.code, drop.path) == ("question_too_long", "$.input")
    assert lengths(record("ab", "cde"), Lengths(max_chars=2)).code == "answer_too_long"
    assert lengths(record("ab", "c"), Lengths(min_answer_chars=2)).code == "answer_too_short"
    assert lengths(record("a", "cd"), Lengths(min_question_chars=2)).code == "question_too_short"
