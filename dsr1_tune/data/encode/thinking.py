"""The reasoning that models write between <think> and </think> before an answer: find it, split it off, strip it."""

from __future__ import annotations

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
EMPTY = "\n</think>\n\n"
"""What closes a <think> tag that holds no reasoning, as reasoning models write it."""


@dataclass(frozen=True, slots=True)
class Reasoned:
    """An answer that begins with reasoning: the reasoning without its tags, and the answer that follows it."""

    reasoning: str
    answer: str


def find(text: str) -> list[tuple[int, int]]:
    """Where (first, end) the reasoning is in an assistant's message, with its tags and the blanks behind them.

    Reasoning that is closed but not opened was opened by the prompt: it begins where the text does. A <think> that
    opens the text and is never closed goes on to its end; a lone <think> further back is a word like any other.
    """
    spans = []
    at = 0
    close, opened = text.find(CLOSE), text.find(OPEN)
    if close >= 0 and not 0 <= opened < close:
        at = _behind(text, close)
        spans.append((0, at))
    while (opened := text.find(OPEN, at)) >= 0:
        close = text.find(CLOSE, opened)
        if close < 0:
            return [*spans, (opened, len(text))] if not text[:opened].strip() else spans
        at = _behind(text, close)
        spans.append((opened, at))
    return spans


def _behind(text: str, close: int) -> int:
    """Behind a closing tag and the blanks that follow it."""
    return len(text) - len(text[close + len(CLOSE) :].lstrip())


def strip(text: str) -> str:
    """The message without any reasoning."""
    for first, end in reversed(find(text)):
        text = text[:first] + text[end:]
    return text


def part(text: str) -> Reasoned | None:
    """The reasoning with which a message begins, and the answer; None where it begins otherwise, or never ends."""
    before, closed, answer = text.partition(CLOSE)
    if not closed:
        return None
    blank, opened, reasoning = before.partition(OPEN)
    if not opened:
        return Reasoned(before, answer)
    return Reasoned(reasoning, answer) if not blank.strip() else None
