"""The nouns that flow through the data stage: Message, ToolCall, Record, Preference, Feedback, Prompt, and Drop."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

DAMAGE = frozenset({"json_damaged", "json_truncated", "csv_truncated"})
"""Codes after which a file holds an unknown number of further rows that nobody could read."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands: its file, the line on which it starts (from 1) and its index among the rows (from 0).

    Parquet has no lines; there the line is the number of the row, from 1.
    """

    file: str
    line: int
    index: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def seen_from(self, other: Place) -> str:
        """What a message about another row says: without the file where that is in the same."""
        return f"{f'line {self.line}' if self.file == other.file else self} (row {self.index})"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the assistant calls; `arguments` is the JSON text of an object, `id` names it to its result."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `path` is where its text stands in the row it was read from.

    A thought stands in `content`, between <think> and </think>. `calls` are the functions that the assistant calls
    behind its words. A turn whose author excludes it from the loss `is_learned` not. The result of a call may have the
    function's `name` and the call's `call_id`.
    """

    role: Role
    content: str
    path: str = field(default="$", compare=False, repr=False)
    calls: tuple[ToolCall, ...] = ()
    is_learned: bool = True
    name: str = ""
    call_id: str = ""

    @property
    def said(self) -> str:
        """The words and the calls as one text, to compare turns and to show them."""
        return said(self.content, [(call.name, call.arguments) for call in self.calls]) if self.calls else self.content


def said(content: str, calls: Iterable[tuple[str, str]]) -> str:
    """A turn's words, and each call (name, arguments) on a line of its own, its arguments sorted by their names."""
    return "\n".join([content] * bool(content) + [f"{name}({_sorted(arguments)})" for name, arguments in calls])


@lru_cache(maxsize=1024)
def _sorted(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False, sort_keys=True)
    except ValueError:
        return arguments


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation to learn from; its last message is the assistant's.

    `tools` is the JSON text of the functions the assistant may call, if any; `row` is the row as it was read; `notes`
    say what is odd about a row that can be used all the same.
    """

    messages: tuple[Message, ...]
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)

    @property
    def question(self) -> str:
        """The last thing the user said before the final answer."""
        return next((m.content for m in reversed(self.messages[:-1]) if m.role == "user"), "")

    @property
    def answer(self) -> str:
        """The final answer, its calls included."""
        return self.messages[-1].said


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer, for reward models and DPO."""

    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Feedback:
    """A prompt with one answer and whether people liked it, for KTO."""

    prompt: tuple[Message, ...]
    completion: Message
    is_good: bool
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt without an answer to learn, for PPO and GRPO; `answer` is the checkable result where there is one."""

    messages: tuple[Message, ...]
    answer: str | None
    place: Place
    tools: str = ""
    row: Any = field(default=None, compare=False, repr=False)
    notes: tuple[Drop, ...] = field(default=(), compare=False, repr=False)


Row = Record | Preference | Feedback | Prompt


def messages_of(row: Row) -> tuple[Message, ...]:
    """All that is said in a row, its answers last; a prompt's checkable answer is not said."""
    match row:
        case Preference():
            return (*row.prompt, row.chosen, row.rejected)
        case Feedback():
            return (*row.prompt, row.completion)
        case Prompt() | Record():
            return row.messages


def prompt_of(row: Row) -> tuple[Message, ...]:
    """All that is said before the answer."""
    match row:
        case Preference() | Feedback():
            return row.prompt
        case Prompt():
            return row.messages
        case Record():
            return row.messages[:-1]


def with_messages(row: Row, messages: tuple[Message, ...]) -> Row:
    """The row with other messages, in the order of `messages_of`."""
    match row:
        case Preference():
            return replace(row, prompt=messages[:-2], chosen=messages[-2], rejected=messages[-1])
        case Feedback():
            return replace(row, prompt=messages[:-1], completion=messages[-1])
        case Prompt() | Record():
            return replace(row, messages=messages)


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that cannot be used, and how to fix it.

    `code` is one of those in rules/codes.py; `path` is the JSON path inside the row (`$.messages[1].content`); `row` is
    the row as it was read, or its raw text where it could not be parsed. A rule fills in what is wrong; the pipeline
    adds where with `at`.
    """

    code: str
    detail: str
    fix: str = ""
    path: str = "$"
    stage: str = ""
    place: Place | None = None
    row: Any = None

    def at(self, place: Place, stage: str, row: Any) -> Drop:
        """The same drop, with where it happened and what fell out."""
        return replace(self, place=place, stage=stage, row=row)

    def as_json(self) -> dict[str, Any]:
        """What is wrong and where, without the row, as plain JSON values."""
        where = {name: getattr(self.place, name, None) for name in ("file", "line", "index")}
        return where | {name: getattr(self, name) for name in ("stage", "code", "path", "detail", "fix")}


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of a row in one step: the row, perhaps repaired, or a Drop; and what is odd about a row that is kept.

    `notes` are remarks in the form of Drops; `repaired` names what was repaired, such as "encoding".
    """

    row: Row | Drop
    notes: tuple[Drop, ...] = ()
    repaired: tuple[str, ...] = ()
