"""The thoughts that reasoning models write before an answer: found, told from the answer, taken out."""

from __future__ import annotations

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
EMPTY = "\n</think>\n\n"
"""What closes a thought that was opened and holds nothing, as reasoning models write it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that begins with a thought: what is thought, without its tags, and what is said afterwards."""

    thought: str
    said: str


def find(text: str) -> list[tuple[int, int]]:
    """Where (first, end) the thoughts stand in what an assistant says, with their tags and the blanks behind them.

    A thought that is closed but not opened was opened by the prompt: it begins where the text does. One that opens
    the text and is never closed goes on to its end; a lone <think> further back is a word like any other.
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
    rest = text[close + len(CLOSE) :]
    return len(text) - len(rest.lstrip())


def strip(text: str) -> str:
    """What is said, without any thought."""
    for first, end in reversed(find(text)):
        text = text[:first] + text[end:]
    return text


def part(text: str) -> Answer | None:
    """The thought with which an answer begins, and the rest; None where it begins otherwise, or never ends."""
    before, closed, said = text.partition(CLOSE)
    if not closed:
        return None
    blank, opened, thought = before.partition(OPEN)
    if not opened:
        return Answer(before, said)
    return Answer(thought, said) if not blank.strip() else None
