"""Personal data: find it, and put typed placeholders, drop the row, or only count it."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from dsr1_tune.data.privacy_kinds import FINDERS, KINDS, NUMBERS, OPTIONAL, worth_a_look
from dsr1_tune.data.privacy_numbers import fold, number_windows
from dsr1_tune.data.record import Checked, Drop, Message, Preference, Prompt, Record, Row
from dsr1_tune.errors import ConfigError

Action = Literal["off", "count", "redact", "drop"]

__all__ = ["KINDS", "Found", "Guard", "find", "known_kinds"]


@dataclass(frozen=True, slots=True)
class Found:
    """Personal data of a kind, at `text[start:end]`."""

    kind: str
    start: int
    end: int


def find(text: str, kinds: Iterable[str] = ()) -> list[Found]:
    """The personal data in a text, in order and without overlap; no `kinds` means all but the optional ones.

    Every kind is looked for, whichever are asked for: 13812345678@qq.com is no telephone number.
    """
    return _find(text, known_kinds(kinds)) if worth_a_look(text) else []


def known_kinds(kinds: Iterable[str]) -> frozenset[str]:
    """The kinds asked for, or those looked for by default. Raises ConfigError for kinds that are none."""
    asked = tuple(kinds)
    for kind in asked:
        if kind not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"privacy.kinds: there is no kind {kind!r}{meant}", hint=f"the kinds are: {', '.join(KINDS)}"
            )
    return frozenset(asked) or frozenset(KINDS) - OPTIONAL


def _find(text: str, kinds: frozenset[str]) -> list[Found]:
    folded = fold(text)
    found = []
    everywhere, windows = [(0, len(text))], number_windows(folded)
    for kind, finder in FINDERS.items():
        for start, end in [
            span for part in (windows if kind in NUMBERS else everywhere) for span in finder(folded, *part)
        ]:
            if _TAKEN in folded[start:end]:
                continue
            # Taken out, so that a later kind finds no part of it, but sees the words around it.
            folded = folded[:start] + _TAKEN * (end - start) + folded[end:]
            if kind in kinds:
                found.append(Found(kind, start, end))
    return sorted(found, key=lambda one: one.start)


_TAKEN = "\0"


@dataclass(frozen=True)
class Guard:
    """Looks after the personal data of rows: built once, then asked about each row."""

    kinds: tuple[str, ...] = ()
    action: Action = "count"
    _kinds: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_kinds", known_kinds(self.kinds))

    def check(self, row: Row) -> tuple[Checked, Counter[str]]:
        """What becomes of the row, and how much personal data of each kind it holds.

        A redacted row has the same placeholder for the same value in all its messages: `[EMAIL_1]`.
        """
        texts = _texts(row)
        if self.action == "off" or not worth_a_look("\n".join([text for _, text in texts])):
            return Checked(row), Counter()
        found = [(path, text, one) for path, text in texts for one in _find(text, self._kinds)]
        counts = Counter(one.kind for _, _, one in found)
        if not found or self.action == "count":
            return Checked(row), counts
        if self.action == "drop":
            return Checked(_drop(found, counts)), counts
        placeholders = _Placeholders.beyond(text for _, text in texts)
        changed = _changed(row, lambda text: _redact(text, self._kinds, placeholders))
        return Checked(changed, mended=("personal_data",)), counts


def _texts(row: Row) -> list[tuple[str, str]]:
    """(path, text) of everything a model could learn of the row."""
    match row:
        case Preference():
            messages = (*row.prompt, row.chosen, row.rejected)
        case Record() | Prompt():
            messages = row.messages
    texts = [(message.path, message.content) for message in messages]
    if row.tools:
        texts.append(("$.tools", row.tools))
    if isinstance(row, Prompt) and row.answer:
        texts.append(("$.answer", row.answer))
    return texts


def _drop(found: list[tuple[str, str, Found]], counts: Counter[str]) -> Drop:
    """Why the row falls out; what was found is told only in part, as reports travel further than data."""
    first: dict[str, str] = {}
    for _, text, one in found:
        first.setdefault(one.kind, _masked(text[one.start : one.end]))
    said = ", ".join(f"{number} {kind} ({first[kind]})" for kind, number in sorted(counts.items()))
    fix = "remove it, or keep the row with placeholders: --set privacy.action=redact"
    return Drop("personal_data", said, fix, found[0][0])


def _masked(value: str) -> str:
    return value[: min(3, len(value) // 4)] + "***"


def _changed(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every text changed."""

    def message(old: Message) -> Message:
        return replace(old, content=change(old.content))

    match row:
        case Record():
            return replace(row, messages=tuple(map(message, row.messages)), tools=change(row.tools))
        case Preference():
            prompt = tuple(map(message, row.prompt))
            chosen, rejected = message(row.chosen), message(row.rejected)
            return replace(row, prompt=prompt, chosen=chosen, rejected=rejected, tools=change(row.tools))
        case Prompt():
            answer = change(row.answer) if row.answer else row.answer
            return replace(row, messages=tuple(map(message, row.messages)), tools=change(row.tools), answer=answer)


@dataclass
class _Placeholders:
    """The placeholders of one row: a number for every value of a kind, above those that stand in it already."""

    last: dict[str, int]
    given: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def beyond(cls, texts: Iterable[str]) -> _Placeholders:
        last: dict[str, int] = {}
        for kind, number in _PLACEHOLDER.findall("\n".join(texts)):
            last[kind] = max(last.get(kind, 0), int(number))
        return cls(last)

    def of(self, kind: str, written: str) -> str:
        key = (kind, _value(kind, written))
        if key not in self.given:
            name = kind.upper()
            self.last[name] = self.last.get(name, 0) + 1
            self.given[key] = f"[{name}_{self.last[name]}]"
        return self.given[key]


_PLACEHOLDER = re.compile(rf"\[({'|'.join(map(str.upper, KINDS))})_([0-9]{{1,9}})\]")


def _value(kind: str, written: str) -> str:
    """What is meant, however it is written: +86 138-1234-5678 and 13812345678 are one number."""
    written = fold(written).lower()
    if kind == "email":
        written = re.sub(r"[\s\[\](){}]*\b(at|dot)\b[\s\[\](){}]*", lambda m: "@" if m[1] == "at" else ".", written)
    if kind in ("email", "ip", "name", "wechat"):
        return re.sub(r"\s+", " ", written)
    digits = re.sub(r"[\W_]", "", written)
    return re.sub(r"^(?:(?:00)?86|0(?=1))(?=1[0-9]{10}$)", "", digits) if kind == "cn_mobile" else digits


def _redact(text: str, kinds: frozenset[str], placeholders: _Placeholders) -> str:
    """The text with placeholders for all that is found in it; JSON stays JSON."""
    # Again until there is nothing: what is taken out may have hidden what stood right beside it.
    while worth_a_look(text) and (found := _find(text, kinds)):
        quotes = _Quotes.of(text)
        for one in reversed(found):
            start, end, quote = quotes.around(one.start, one.end)
            placeholder = placeholders.of(one.kind, text[one.start : one.end])
            text = f"{text[:start]}{quote}{placeholder}{quote}{text[end:]}"
    return text


@dataclass(frozen=True)
class _Quotes:
    """Where the strings of a JSON text stand; a text that is no JSON is one string."""

    text: str
    strings: tuple[tuple[int, int], ...] | None

    @classmethod
    def of(cls, text: str) -> _Quotes:
        if not text.lstrip().startswith(("{", "[")) or not _is_json(text):
            return cls(text, None)
        return cls(text, tuple(match.span() for match in _STRING.finditer(text)))

    def around(self, start: int, end: int) -> tuple[int, int, str]:
        """What to replace instead, and the quotes that the placeholder needs: a bare number becomes a string."""
        if self.strings is None:
            return start, end, ""
        if not any(first < start and end < last for first, last in self.strings):
            while self.text[start - 1] in _NUMBER:
                start -= 1
            while self.text[end] in _NUMBER:
                end += 1
            return start, end, '"'
        # JSON within a string of JSON, as the arguments of a tool call are: {"arguments": "{\"phone\": 138…}"}.
        inner = _INNER_KEY.search(self.text[max(0, start - 80) : start])
        return start, end, f'{inner[1]}"' if inner and _INNER_END.match(self.text, end) else ""


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = frozenset("0123456789+-.eE")
_INNER_KEY = re.compile(r'(\\+)" ?: ?\Z')
_INNER_END = re.compile(r"\s*[,}\]]")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
