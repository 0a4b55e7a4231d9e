"""Words near a text's beginning and end that several rules look for, found in one pass."""

from __future__ import annotations

from collections.abc import Iterable

from dsr1_tune.data.rules.text_features import Text

MARGIN = 120
"""So many bytes are looked at on either side of a longer text."""
# Refusals stand within so many bytes.
_HEAD = 200
TO_WORDS = bytes(byte if chr(byte).isalnum() and byte < 0x80 else 0x20 for byte in range(256))
"""Turns all but ASCII letters and digits into spaces, to split a text into words."""
_watched: set[bytes] = set()


def watch(words: Iterable[bytes]) -> frozenset[bytes]:
    """Let `hints` report these words from now on; a rule calls it when its module is imported."""
    watched = frozenset(words)
    _watched.update(watched)
    return watched


def hints(text: Text) -> frozenset[bytes]:
    """Which of the watched words stand near the beginning or the end of the text."""
    if text.hints is None:
        low = text.low
        if len(low) > _HEAD + MARGIN:
            low = low[:_HEAD] + b" " + low[-MARGIN:]
        text.hints = frozenset(_watched.intersection(low.translate(TO_WORDS).split()))
    return text.hints


def holds(text: bytes, needles: tuple[bytes, ...]) -> bool:
    """Whether one of the needles stands there: far quicker than a regular expression with alternatives."""
    for needle in needles:  # noqa: SIM110 - any() over a generator takes twice as long
        if needle in text:
            return True
    return False
