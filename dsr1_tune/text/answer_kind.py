"""The kind of a reference answer, from which follows the score that fits: choice, number, list, span or text."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from dsr1_tune.text.equality import is_quantity
from dsr1_tune.text.words import words

Kind = Literal["choice", "number", "list", "span", "text"]

MAX_SPAN_WORDS = 8
MAX_ITEM_WORDS = 6
_CHINESE_PER_WORD = 2  # characters


def kind_of(question: str, reference: str) -> Kind:
    """The kind of a reference answer to a question; a ratio, range, date or formula counts as a number."""
    text = _plain(reference)
    if _LETTER.fullmatch(text) and num_options(question) > 1:
        return "choice"
    if is_quantity(text):
        return "number"
    if is_list(text):
        return "list"
    is_short = _length(text) <= MAX_SPAN_WORDS and "\n" not in text
    return "span" if is_short else "text"


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _length(text: str) -> float:
    """In words; two CJK characters count as one."""
    found = words(text)
    num_cjk = sum(len(word) == 1 and ord(word) > 0x2E80 for word in found)
    return len(found) - num_cjk + num_cjk / _CHINESE_PER_WORD


# --- choices ---------------------------------------------------------------------------------------------------------

_LETTER = re.compile(
    r"(?:(?:the )?(?:answer|option|choice)(?: is)?|答案|选项|选)?[是为选]*[:\s]*\(?([A-Ja-j])\)?[.。、)]?", re.I
)
_OPTION = re.compile(r"(?:^|[\s(,;。,;])([A-J])\s*[.、:)](?!\w{0,1}[.:])")


def num_options(question: str) -> int:
    """How many options, A, B, C and so on in this order, a question offers."""
    offered = set(_OPTION.findall(unicodedata.normalize("NFKC", question)))
    return next((number for number, letter in enumerate("ABCDEFGHIJ") if letter not in offered), 10)


_SAID_CHOICE = (
    re.compile(r"\\boxed\{\s*\(?([A-J])\)?\s*\}"),
    re.compile(r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*\**\(?([A-Ja-j])\b", re.I),
    re.compile(r"(?:答案|选项|应选|故选|选择|选)[是为选:\s]*\**\(?([A-Ja-j])(?![A-Za-z])"),
    re.compile(r"^\W*\(?([A-Ja-j])(?:\)|[.、:,]|\s*$)", re.M),
    re.compile(r"(?<![A-Za-z'])([B-HJ])(?![A-Za-z'])"),
)


def chosen_letter(answer: str) -> str | None:
    """The option that an answer settles on, in upper case."""
    text = _plain(answer)
    for pattern in _SAID_CHOICE:
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    return None


# --- lists -----------------------------------------------------------------------------------------------------------

_BETWEEN = re.compile(r"\s*(?:[,、;\n|]|(?<=\S)\s+and\s+(?=\S))\s*")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)、])\s*")


def items(text: str) -> list[str]:
    """What a list names, each item as its words joined; in the order of the text."""
    found = (" ".join(words(_BULLET.sub("", item))) for item in _BETWEEN.split(_plain(text)))
    return [item for item in found if item]


def is_list(text: str) -> bool:
    """Whether a text does nothing but name things: two or more, set apart by signs, all short, and no sentence."""
    text = _plain(text)
    parts = [part for part in _BETWEEN.split(text) if part.strip()]
    if not _SIGN.search(text) or len(parts) < 2 or _STOP.search(re.sub(r"(?m)^\s*\d+[.)]\s", "", text)):
        return False
    return all(_length(part) <= MAX_ITEM_WORDS for part in parts) and not _SENTENCE.search(text)


_SIGN = re.compile(r"[,、;\n|]")
_STOP = re.compile(r"[.!?。](?:\s|$)")
_SENTENCE = re.compile(r"\b(?:is|are|was|were|you|it|can|should|do|does|have|has)\b|[是有您你]|可以|应该", re.I)
