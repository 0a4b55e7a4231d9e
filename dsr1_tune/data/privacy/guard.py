"""Personal data: find it, and put typed placeholders, drop the row, or only count it."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dsr1_tune.data.privacy.kinds import FINDERS, KINDS, NUMBERS, OPTIONAL, worth_a_look
from dsr1_tune.data.privacy.numbers import fold, number_windows
from dsr1_tune.data.record import Checked, Drop, Message, Prompt, Row, messages_of, with_messages
from dsr1_tune.errors import ConfigError
from dsr1_tune.text.composed import composed

Action = Literal["off", "count", "redact", "drop"]

__all__ = ["KINDS", "Found", "Guard", "find", "known_kinds"]

_PLACEHOLDER = re.compile(rf"\[({'|'.join(map(str.upper, KINDS))})_([0-9]{{1,9}})\]")
_NUMBER = frozenset("0123456789+-.eE")
# What surrounds a number of JSON; within a text there is some other sign, nearly always.
_VALUE_FROM = re.compile(r"[:,\[][-\s]*\Z")
_VALUE_TO = re.compile(r"[\s\\nrt]*[,}\]]")
_MARK = "\ue000"


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
    folded, taken = fold(text), bytearray(len(text))
    everywhere, windows = [(0, len(text))], number_windows(folded)
    found = []
    for kind, finder in FINDERS.items():
        fresh = []
        for part in windows if kind in NUMBERS else everywhere:
            for start, end in finder(folded, *part):
                if not any(taken[start:end]):
                    taken[start:end] = b"\1" * (end - start)
                    fresh.append((start, end))
        if fresh:
            folded = _blanked(folded, fresh)
            found += [Found(kind, start, end) for start, end in fresh if kind in kinds]
    return sorted(found, key=lambda one: one.start)


def _blanked(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text without what was found, so that a later kind finds no part of it, but sees the words around it."""
    parts, done = [], 0
    for start, end in sorted(spans):
        parts += [text[done:start], "\0" * (end - start)]
        done = end
    return "".join([*parts, text[done:]])


class Guard:
    """Looks after the personal data of rows: built once, then asked about each row."""

    def __init__(self, kinds: Iterable[str] = (), action: Action = "count") -> None:
        self.action = action
        self._kinds = known_kinds(kinds)

    def check(self, row: Row) -> tuple[Checked, Counter[str]]:
        """What becomes of the row, and how much personal data of each kind it holds.

        A redacted row has the same placeholder for the same value in all its messages: `[EMAIL_1]`.
        """
        messages = messages_of(row)
        if isinstance(row, Prompt):  # its checkable answer, as if the assistant said it
            messages += (Message("assistant", row.answer or "", "$.answer"),)
        joined = "\n".join([message.said for message in messages])
        if self.action == "off" or not (worth_a_look(joined) or (row.tools and worth_a_look(row.tools))):
            return Checked(row), Counter()
        texts = [(message.path, message.content) for message in messages if message.content]
        texts += [(message.path, call.arguments) for message in messages for call in message.calls]
        if row.tools:
            texts.append(("$.tools", row.tools))
        found = [(path, text, one) for path, text in texts if worth_a_look(text) for one in _find(text, self._kinds)]
        counts = Counter(one.kind for _, _, one in found)
        if not found or self.action == "count":
            return Checked(row), counts
        if self.action == "drop":
            return Checked(_drop(found, counts)), counts
        placeholders = _Placeholders.beyond(text for _, text in texts)
        changed = _changed(row, lambda text: _redact(text, self._kinds, placeholders))
        return Checked(changed, repaired=("personal_data",)), counts

    def hide(self, text: str) -> str:
        """The text as a report may show it: where personal data is redacted or dropped, with placeholders."""
        if self.action in ("off", "count") or not worth_a_look(text):
            return text
        return _redact(text, self._kinds, _Placeholders.beyond([text]))


def _drop(found: list[tuple[str, str, Found]], counts: Counter[str]) -> Drop:
    """Why the row falls out; what was found is told only in part, as reports travel further than data."""
    first: dict[str, str] = {}
    for _, text, one in found:
        value = text[one.start : one.end]
        first.setdefault(one.kind, value[: min(3, len(value) // 4)] + "***")
    said = ", ".join(f"{number} {kind} ({first[kind]})" for kind, number in sorted(counts.items()))
    fix = "remove it, or keep the row with placeholders: --set privacy.action=redact"
    return Drop("personal_data", said, fix, found[0][0])


def _changed(row: Row, change: Callable[[str], str]) -> Row:
    if isinstance(row, Prompt) and row.answer:
        row = replace(row, answer=change(row.answer))
    messages = []
    for message in messages_of(row):
        calls = tuple(replace(call, arguments=change(call.arguments)) for call in message.calls)
        messages.append(replace(message, content=change(message.content), calls=calls))
    return replace(with_messages(row, tuple(messages)), tools=change(row.tools))


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


def _value(kind: str, written: str) -> str:
    """What is meant, however it is written: +86 138-1234-5678 and 13812345678 are one number."""
    written = composed(fold(written)).lower()
    if kind == "email":
        written = re.sub(r"[\s\[\](){}]*\b(at|dot)\b[\s\[\](){}]*", lambda m: "@" if m[1] == "at" else ".", written)
    if kind in ("email", "ip", "name", "wechat"):
        return re.sub(r"\s+", " ", written)
    digits = re.sub(r"[\W_]", "", written)
    if kind == "cn_mobile":
        return digits[-11:]
    return re.sub(r"^1(?=[0-9]{10}$)", "", digits) if kind == "phone" else digits


def _redact(text: str, kinds: frozenset[str], placeholders: _Placeholders) -> str:
    """The text with placeholders for all that is found in it; JSON stays JSON."""
    # Again until there is nothing: what is taken out may have hidden what stood right beside it.
    while worth_a_look(text) and (found := _find(text, kinds)):
        parts, done = [], 0
        for one in found:
            start, end, placeholder = one.start, one.end, placeholders.of(one.kind, text[one.start : one.end])
            if quote := _quote(text, start, end):
                # A bare number becomes a text, sign and all.
                start = next(at for at in range(start, 0, -1) if text[at - 1] not in _NUMBER)
                end = next(at for at in range(end, len(text)) if text[at] not in _NUMBER)
            parts += [text[done:start], quote, placeholder, quote]
            done = end
        text = "".join([*parts, text[done:]])
    return text


def _quote(text: str, start: int, end: int) -> str:
    """The quotation mark that a placeholder there needs: {"phone": 13812345678} would be no JSON without.

    JSON may hold JSON, as the arguments of a tool call are: {"arguments": "{\\"phone\\": 13812345678}"}; there the
    mark is escaped once more at every depth.
    """
    if not text.lstrip().startswith(("{", "[")) or not (
        _VALUE_FROM.search(text[max(0, start - 24) : start]) and _VALUE_TO.match(text, end)
    ):
        return ""
    marked, depth = text[:start] + _MARK + text[end:], 0
    while marked.lstrip().startswith(("{", "[")):
        value = _parsed(marked)
        if value is None:
            bare = _parsed(marked.replace(_MARK, "0")) is not None
            return "\\" * (2**depth - 1) + '"' if bare else ""
        marked, depth = _marked_string(value), depth + 1
    return ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _marked_string(value: Any) -> str:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text) if _MARK in text:
                return text
            case dict(fields):
                waiting += [*fields, *fields.values()]
            case list(items):
                waiting += items
    return ""
