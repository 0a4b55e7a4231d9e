"""Pairs of answers differ, and do not contradict one another."""

from __future__ import annotations

import unicodedata

from dsr1_tune.data.record import Feedback, Message, Place, Preference, Record, ToolCall
from dsr1_tune.data.rules.pairs import PreferenceStats, answers_differ, opposed, remarks_on_pair, stance_of

PLACE = Place("a", 1, 0)


def pair(chosen: str, rejected: str, asked: str = "Q") -> Preference:
    return Preference((Message("user", asked),), Message("assistant", chosen), Message("assistant", rejected), PLACE)


def rated(answer: str, is_good: bool) -> Feedback:
    return Feedback((Message("user", "Q"),), Message("assistant", answer), is_good, PLACE)


def test_answers_differ_and_remarks_on_uneven_pairs():
    assert answers_differ(pair("A  b\n", "A b")).code == "equal_answers"
    fine = pair("A b", "a b")
    assert answers_differ(fine) is fine and remarks_on_pair(fine) == ()
    (note,) = remarks_on_pair(pair("short", "long " * 60))
    assert (note.code, note.detail) == ("uneven_lengths", "rejected is 59.8 times as long (299 and 5 characters)")
    # Two short answers may differ by any factor.
    assert remarks_on_pair(pair("no", "certainly not")) == ()


def test_opposed_finds_contradicting_rows():
    rows = [pair("A", "B"), pair("B ", "a"), pair("A", "B", "R"), rated("A", True), rated("A", False), rated("B", True)]
    assert opposed(map(stance_of, rows)) == {0: 1, 1: 0, 3: 4, 4: 3}
    assert stance_of(Record((Message("user", "Q"), Message("assistant", "A")), PLACE)) == 0


def test_preference_stats_tell_what_length_alone_tells():
    found = PreferenceStats.of(
        [pair("long answer", "b"), pair("a", "longer"), pair("c", "d"), pair("even longer", "d")]
    )
    assert (found.num_pairs, found.num_chosen_longer, found.num_rejected_longer) == (4, 2, 1)
    assert found.longer_share == found.length_share == 0.625 and not found.length_tells
    ((text, is_warning),) = found.sentences()
    assert "longer answer in 2 of 4 pairs, rejected in 1: who only takes the longer one is right in 62%" in text
    assert not is_warning
    shorter = PreferenceStats.of([pair("a", f"longer {n}") for n in range(20)])
    assert (shorter.longer_share, shorter.length_share, shorter.length_tells) == (0, 1, True)
    ((text, is_warning),) = shorter.sentences()
    assert "who only takes the shorter one is right in 100%" in text and is_warning
    assert PreferenceStats.of([rated("A", True)]).sentences() == [
        ("Labels: 1 good, 0 bad. One kind alone teaches little: add the other.", True)
    ]


def test_answers_that_differ_in_their_stored_form_only_are_equal():
    def apart(text: str) -> str:
        return unicodedata.normalize("NFD", text)

    for one, other in (("서울입니다", "부산입니다"), ("Hà Nội", "Hạ Nội"), ("à l'été", "à l'étê")):
        assert answers_differ(pair(one, apart(one))).code == "equal_answers"
        fine = pair(one, apart(other))
        assert answers_differ(fine) is fine
        rows = [pair(one, other, "où ?"), pair(apart(other), apart(one), apart("où ?")), pair(other, one, "ou ?")]
        assert opposed(map(stance_of, rows)) == {0: 1, 1: 0}


def calling(arguments: str, words: str = "") -> Message:
    return Message("assistant", words, calls=(ToolCall("f", arguments),))


def test_answers_whose_calls_differ_in_the_order_of_arguments_are_equal():
    asked = (Message("user", "Q"),)
    one, other = calling('{"a": 1, "b": 2}'), calling('{"b": 2, "a": 1}')
    assert answers_differ(Preference(asked, one, other, PLACE)).code == "equal_answers"
    for different in (calling('{"b": 1, "a": 2}'), calling('{"a": 1}'), calling('{"b": 2, "a": 1}', "Well.")):
        pair = Preference(asked, one, different, PLACE)
        assert answers_differ(pair) is pair
    third = calling('{"a": 3}')
    stances = [stance_of(Preference(asked, one, third, PLACE)), stance_of(Preference(asked, third, other, PLACE))]
    assert opposed(stances) == {0: 1, 1: 0}
