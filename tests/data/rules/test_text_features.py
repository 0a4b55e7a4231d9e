"""What the rules ask about a text: its shape, who said what, and forms of it that are quick to compare."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsr1_tune.data.record import Feedback, Message, Place, Preference, Prompt, Record
from dsr1_tune.data.rules.text_features import (
    LONG,
    MARGIN,
    Text,
    bare,
    ends,
    folded,
    hints,
    holds,
    looks_like_code,
    phrases,
    quoted,
    view,
    visible,
    watch,
    with_texts,
    without_code,
)

PLACE = Place("a", 1, 0)


def text(content):
    return Text(Message("assistant", content))


def test_text_has_a_class_for_every_character():
    seen = text("Ab 12, 是ñюΩ한か")
    assert seen.shape == b"aa 00, hlcgyk"
    assert (seen.num_latin, seen.num_han, seen.signs, seen.is_han) == (2, 1, b",", True)
    assert text("\x00").signs == b"\x01"


@given(content=st.text(max_size=100))
def test_text_shape_has_a_byte_per_character(content):
    seen = text(content)
    assert len(seen.shape) == len(content)
    assert seen.num_latin == sum(char.isascii() and char.isalpha() for char in content)


def test_view_tells_question_answer_and_the_rest():
    system, user = Message("system", "Be KIND."), Message("user", "Why?")
    tool, answer = Message("tool", "42"), Message("assistant", "So.")
    seen = view(Record((system, user, Message("assistant", "look()"), tool, answer), PLACE))
    assert (seen.question.content, seen.answer.content, seen.asked) == ("Why?", "So.", "be kind.\nwhy?")
    assert [one.content for one in seen.answers] == ["look()", "So."]
    assert [one.content for one in seen.checked] == ["Why?", "look()", "So."]
    assert seen.has_tools and not view(Record((user, answer), PLACE)).has_tools
    assert view(Prompt((user,), None, PLACE)).answer is None
    assert view(Feedback((user,), answer, False, PLACE)).answer is None
    assert view(Preference((user,), answer, Message("assistant", "bad"), PLACE)).answer.content == "So."


def test_view_is_kept_for_the_same_row():
    row = Record((Message("user", "Q"), Message("assistant", "A")), PLACE)
    assert view(row) is view(row)
    assert view(Record(row.messages, PLACE)) is not view(row)


def test_with_texts_changes_what_should_be_good_only():
    user, good, bad = Message("user", "Q"), Message("assistant", "A"), Message("assistant", "B")
    assert with_texts(Record((user, good), PLACE), ["q", "a"]).answer == "a"
    pair = with_texts(Preference((user,), good, bad, PLACE), ["q", "a"])
    assert (pair.prompt[0].content, pair.chosen.content, pair.rejected) == ("q", "a", bad)
    disliked = with_texts(Feedback((user,), bad, False, PLACE), ["q"])
    assert (disliked.prompt[0].content, disliked.completion) == ("q", bad)


@pytest.mark.parametrize(
    ("content", "shown"), [(" a ", "a"), ("\u200b\ufeff a\u3000", "a"), ("\u115f\u1160", ""), ("a\u200bb", "a\u200bb")]
)
def test_visible_is_without_what_prints_nothing(content, shown):
    assert visible(content) == shown


def test_folded_and_bare_are_equal_where_only_the_looks_differ():
    assert folded("Ｆｕｌｌ\u3000 Width\u00ad!") == "full width!"
    assert bare("Question: Why is it so?") == bare("why is it  SO") == "whyisitso"
    assert bare("问题：为什么？") == "为什么"


def test_quoted_is_short_and_on_one_line():
    assert quoted("a\n b") == "'a b'"
    assert len(quoted("x" * 1000)) < 70 and " … " in quoted("x" * 1000)


def test_ends_are_the_beginning_and_the_end_of_a_long_text():
    assert ends("short") == "short"
    long = "a" * LONG + "b" * LONG + "c" * LONG
    assert ends(long) == "a" * LONG + "\n" + "c" * LONG


def test_without_code_leaves_out_fenced_blocks():
    assert without_code(text("a\n```py\nx = 1\n```\nb")) == "a\n\n\nb"
    assert without_code(text("a ```never closed")) == "a \n"


@pytest.mark.parametrize(
    ("content", "is_code"),
    [
        ("def f(x):\n    return x", True),
        ('{"a": 1}', True),
        ("x = \\frac{1}{2}", True),
        ("SELECT a\nFROM b", True),
        ("It is good for the heart.", False),
        ("规律的运动可以增强心脏功能。", False),
    ],
)
def test_looks_like_code(content, is_code):
    assert looks_like_code(text(content)) is is_code


def test_phrases_are_split_at_bars_and_lines():
    assert phrases("a|b c\n  d||") == ["a", "b c", "d"]


def test_hints_are_the_watched_words_near_both_ends():
    watched = watch([b"zyzzyva", b"quokka", b"axolotl"])
    middle = "word " * 200
    text = Text(Message("assistant", f"A Zyzzyva, {middle} axolotl {middle} a quokka."))
    assert hints(text) & watched == {b"zyzzyva", b"quokka"}
    assert hints(text) is hints(text)
    assert hints(Text(Message("assistant", "zyzzyvas"))) & watched == set()
    assert len(middle) > MARGIN


def test_holds_finds_any_needle():
    assert holds(b"one two", (b"three", b"two")) and not holds(b"one two", (b"three",))


def test_text_is_composed_and_its_message_is_as_it_was_written():
    message = Message("user", unicodedata.normalize("NFD", "한글 é"))
    text = Text(message)
    assert (text.content, text.message.content, text.shape) == ("한글 é", message.content, b"yy l")
