"""The rule about a web page's own text in answers: navigation, notices, copyright."""

from __future__ import annotations

import re

from dsr1_tune.data.phrase_table import PhraseTable
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import MARGIN, TO_WORDS, Text, hints, quoted, view, watch

_TABLE = PhraseTable(__file__)
# A strong phrase is enough, unless pages are the subject; then it takes what only a whole page holds.
_ENOUGH_POINTS = 3
_ABUNDANT_POINTS = 10


class Boilerplate(RuleSettings):
    """Answers with a web page's navigation, cookie or copyright text."""

    phrases: Words = ()
    """Further phrases of your own, each of them a reason."""


def boilerplate(row: Row, settings: Boilerplate) -> Row | Drop:
    """Drop an answer that holds a web page's navigation, notices or copyright text; one weak phrase is no reason."""
    seen = view(row)
    for text in seen.answers:
        found = []
        if settings.phrases:
            lowered = text.content.lower()
            found = [phrase for phrase in settings.phrases if phrase.lower() in lowered]
        if not found:
            points, found = _page_points(text)
            if points > 1 and _TABLE.menu.search(text.content):
                points += 1
            if points < _ENOUGH_POINTS or (points < _ABUNDANT_POINTS and _TABLE.about_pages.search(seen.asked)):
                continue
        fix = "cut the page's own text out of the answer"
        return Drop("boilerplate", f"text of a web page: {quoted(', '.join(found))}", fix, text.message.path)
    return row


def _page_points(text: Text) -> tuple[int, list[str]]:
    """How much speaks for a web page, and the phrases; pages leave their own text around what they hold."""
    low, content = text.low, text.content
    if len(low) > 2 * MARGIN:
        low = low[:MARGIN] + b"\n" + low[-MARGIN:]
    found = []
    if not text.num_han or text.num_latin > 9:
        for word in sorted(hints(text) & _TRIGGERS):
            found += [phrase.decode() for phrase in _PAGE_LATIN[word] if phrase in low]
    if text.num_han:
        if len(content) > 2 * MARGIN:
            content = content[:MARGIN] + "\n" + content[-MARGIN:]
        for char in sorted(set(_ONE_OF_RARE_HAN.findall(content))):
            found += [phrase for phrase in _PAGE_HAN[char] if phrase in content]
    points = 3 * len(found)
    signs = text.signs
    if points or b"|" in signs or b">" in signs or (b"s" in signs and "©" in content):
        lowered = content.lower()
        weak = [phrase for phrase in _TABLE["weak"] if phrase in lowered]
        points += len(weak)
        found += weak
    return points, found


def _by_rarest_part() -> tuple[dict[bytes, list[bytes]], dict[str, list[str]]]:
    """The strong phrases by the rarest word in them, in Chinese by the rarest character."""
    latin: dict[bytes, list[bytes]] = {}
    triggers = [word.encode() for word in _TABLE["trigger_words"]]
    for phrase in _TABLE["strong_latin"]:
        words = phrase.encode().translate(TO_WORDS).split()
        latin.setdefault(next(word for word in triggers if word in words), []).append(phrase.encode())
    han: dict[str, list[str]] = {}
    for phrase in _TABLE["strong_han"]:
        han.setdefault(next(char for char in _TABLE["rare_han"] if char in phrase), []).append(phrase)
    return latin, han


_PAGE_LATIN, _PAGE_HAN = _by_rarest_part()
_ONE_OF_RARE_HAN = re.compile(f"[{''.join(_PAGE_HAN)}]")
_TRIGGERS = watch(_PAGE_LATIN)


BOILERPLATE = Rule(
    "boilerplate",
    boilerplate,
    Meaning("the answer is a web page's navigation, cookie or copyright text", "回答是网页导航、Cookie 提示或版权声明"),
    Boilerplate,
)
