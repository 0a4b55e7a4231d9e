"""The rule about words of the user's own list."""

from __future__ import annotations

import re
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings, Words
from dsr1_tune.data.rules.text_features import Text, folded, quoted, view

_FULL_WIDTH = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
# So many words are looked for one by one; of longer lists only those that begin as something in the text does.
_FEW = 64


class BlockedWord(RuleSettings):
    """Rows with a word of your list."""

    words: Words = ()
    """The words; case, width and the kind of space do not matter, and Latin words are whole words."""
    files: tuple[str, ...] = ()
    """Text files with a word on each line, beside the pack; # begins a remark."""

    @property
    def is_idle(self) -> bool:
        """Whether the rule is off, or its list is empty."""
        return super().is_idle or not self.words

    @classmethod
    def resolve(cls, given: dict[str, Any], folder: Path, problems: list[str]) -> dict[str, Any]:
        """The settings with the words of the listed files among the words."""
        if not isinstance(given.get("files"), list):
            return given
        listed = given.get("words") or []
        words = list(listed) if isinstance(listed, list) else []
        for number, name in enumerate(given["files"]):
            try:
                lines = map(str.strip, (folder / str(name)).read_text(encoding="utf-8-sig").split("\n"))
                words += [line for line in lines if line and not line.startswith("#")]
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                problems.append(f"files.{number}: {folder / str(name)} cannot be read: {why}")
        return {**given, "words": words}

    @cached_property
    def in_low(self) -> tuple[str, ...]:
        """The words in lower case and half width."""
        return tuple(filter(None, map(folded, self.words)))

    @cached_property
    def have_spaces(self) -> bool:
        """Whether some words are phrases, between whose words any space may stand."""
        return any(" " in word for word in self.in_low)

    @cached_property
    def by_start(self) -> dict[str, tuple[str, ...]]:
        """The words by their first two characters, so that a long list costs no more than a short one."""
        starts: dict[str, list[str]] = {}
        for word in self.in_low:
            starts.setdefault(word[:2], []).append(word)
        return {start: tuple(words) for start, words in starts.items()}


def blocked_word(row: Row, settings: BlockedWord) -> Row | Drop:
    """Drop a row with a word of the list in a question or answer; in Latin script only whole words count."""
    if not settings.words:
        return row
    for text in view(row).checked:
        lowered = _searchable(text, settings)
        for word in _candidates(lowered, settings):
            whole = rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])" if word.isascii() else re.escape(word)
            if found := re.search(whole, lowered):
                near = lowered[max(0, found.start() - 15) : found.end() + 15]
                fix = "remove the row, or take the word off the list of blocked_word"
                return Drop("blocked_word", f"holds {word!r}: {quoted(near)}", fix, text.message.path)
    return row


def _searchable(text: Text, settings: BlockedWord) -> str:
    """The text in lower case, and folded where full width, invisible characters or odd spaces could hide a word."""
    data = text.data
    hides = _FULL_WIDTH.search(text.content) if b"\xef\xbc" in data or b"\xef\xbd" in data else None
    if hides or b"\xe2\x80" in data or b"\xc2\xad" in data or b"\xef\xbb\xbf" in data or settings.have_spaces:
        return folded(text.content)
    return text.content.lower()


def _candidates(lowered: str, settings: BlockedWord) -> list[str]:
    """The words of the list that stand somewhere in the text, in the list's order for short lists."""
    if len(settings.words) <= _FEW:
        return [word for word in settings.in_low if word in lowered]
    pairs = {first + second for first, second in pairwise(lowered)}
    starts = sorted(settings.by_start.keys() & (pairs | set(lowered)))
    return [word for start in starts for word in settings.by_start[start] if word in lowered]


BLOCKED_WORD = Rule(
    "blocked_word",
    blocked_word,
    Meaning("the row holds a word of your list", "含有屏蔽词表中的词"),
    BlockedWord,
    reads_questions=True,
)
