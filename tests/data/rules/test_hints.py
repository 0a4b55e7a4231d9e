"""Watched words are found near a text's beginning and end, in one pass for all rules."""

from __future__ import annotations

from dsr1_tune.data.record import Message
from dsr1_tune.data.rules.hints import MARGIN, hints, holds, watch
from dsr1_tune.data.rules.text_features import Text


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
