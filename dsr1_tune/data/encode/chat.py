"""A conversation as a chat template takes it: turns, tools, mode; and what can be asked of the template about it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dsr1_tune.config import Encoding
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.end_tokens import EndTokens, end_tokens
from dsr1_tune.data.encode.template import (
    TEMPLATE_ERRORS,
    ToolForm,
    arguments,
    reasoning_field,
    show,
    shows_system,
    tool_form,
    wants,
)
from dsr1_tune.data.encode.tool_text import as_text, functions
from dsr1_tune.data.record import Message, Record

USUAL = Encoding()
"""The settings where none are given: answers are learned, with their reasoning."""


def thinks(messages: tuple[Message, ...]) -> bool:
    """Whether the answer to the last question holds a thought, on its way through calls and results."""
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    return any(message.role == "assistant" and thinking.part(message.content) for message in messages[last + 1 :])


@dataclass(frozen=True)
class Chat:
    """A conversation and the template that shows it."""

    messages: tuple[Message, ...]
    tools: list[Any] | None
    tokenizer: Any
    settings: dict[str, Any]
    """The template's arguments in the mode of this conversation."""
    usual: dict[str, Any]
    """Those of which nothing is known but the user's settings: how a server asks."""
    form: ToolForm | None
    is_thinking: bool
    """Whether the answer holds a thought, or one beside which it stands."""
    moves_system: bool = False
    goes_on_from_prompt: bool = False
    """Whether turns before the last answer are shown otherwise once it is given (gpt-oss): they stand as when asked."""
    is_bare: bool = False
    """Whether thoughts are kept from the template, which would write them behind one that it has closed."""
    _texts: dict[Any, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, record: Record, tokenizer: Any, encoding: Encoding = USUAL, is_thinking: bool | None = None) -> Chat:
        """A record under the template's settings, in the mode of its own thoughts unless `is_thinking` says another.

        Raises ValueError where the template has no form for calls or results that the record holds.
        """
        if encoding.template.thinking == "off":
            record = replace(record, messages=tuple(map(without_thought, record.messages)))
        if is_thinking is None:
            is_thinking = thinks(record.messages)
        usual = arguments(tokenizer, encoding.template)
        settings = arguments(tokenizer, encoding.template, is_thinking if encoding.by_thought else None)
        if encoding.template.tools == "text":
            record = as_text(record)
        form = tool_form(tokenizer, usual) if any(message.calls for message in record.messages) else None
        tools = functions(
            record.tools,
            describes=wants(tokenizer, ".description"),
            parametrises=wants(tokenizer, ".parameters"),
        )
        messages = _with_ids(record.messages, needs_nine=wants(tokenizer, "length != 9"))
        return cls(messages, tools, tokenizer, settings, usual, form, is_thinking)._complete()

    def _complete(self) -> Chat:
        """The chat, with system turns where the template can show them. Raises ValueError where a turn is not shown."""
        if any(message.calls for message in self.messages) and not self.form:
            raise ValueError(f"it has no form for tool calls; {_AS_TEXT}")
        self = self._with_systems_shown()
        if self.form and not self._shows_calls():
            raise ValueError(f"it shows only one of several calls in a turn; write them one by one, or {_AS_TEXT}")
        if any(message.role == "tool" for message in self.messages) and not self._shows("tool"):
            raise ValueError(f"it does not show the results of tools; {_AS_TEXT}")
        if _THINKS_TWICE.search(self.plain):
            self = replace(self, is_bare=True, _texts={})
        return replace(self, goes_on_from_prompt=True, _texts={}) if self._is_shown_otherwise() else self

    def _with_systems_shown(self) -> Chat:
        """The chat, with system turns that the template cannot show where they stand moved to where it can."""
        systems = [number for number, message in enumerate(self.messages) if message.role == "system"]
        if not systems:
            return self
        joins, shows_first = systems != [0] and not self._shows("system"), shows_system(self.tokenizer, self.settings)
        if not joins and shows_first:
            return self
        said = tuple(message for message in self.messages if message.role != "system" or message.content.strip())
        messages = _systems_joined(said) if joins else said
        messages = messages if shows_first else _first_system_moved(messages)
        return replace(self, messages=messages, moves_system=messages != said, _texts={})

    def _is_shown_otherwise(self) -> bool:
        """Whether the turns before the last answer are shown otherwise once it is given than when it is asked for."""
        last = self.last
        if last < 2 or self.messages[last].role != "assistant":
            return False
        asked = self.asked(last)
        if self.plain.startswith(asked):
            return False
        return len(common(asked, self.plain)) < len(common(asked, self.shown(last)))

    def _shows(self, role: str) -> bool:
        """Whether the template shows the turns of this role, each between its neighbours."""
        words = [f"{self.mark}{number}q" for number in range(len(self.messages))]
        asked = [number for number, message in enumerate(self.messages) if message.role in (role, "user")]
        turns = [
            {**turn, "content": words[number]} if number in asked else turn for number, turn in enumerate(self.turns)
        ]
        try:
            text = self.text(turns)
        except TEMPLATE_ERRORS:
            if role == "system":
                return False
            raise
        places = [text.find(words[number]) for number in asked]
        return -1 not in places and places == sorted(places)

    def _shows_calls(self) -> bool:
        """Whether the template shows every call."""
        count = 0
        turns = []
        for message, turn in zip(self.messages, self.turns, strict=True):
            if message.calls:
                names = [f"{self.mark}{count + number}q" for number in range(len(message.calls))]
                count += len(names)
                calls = tuple(replace(call, name=name) for call, name in zip(message.calls, names, strict=True))
                turn = self.turn(replace(message, calls=calls))
            turns.append(turn)
        text = self.text(turns)
        return all(f"{self.mark}{number}q" in text for number in range(count))

    @cached_property
    def ends(self) -> EndTokens:
        """What ends an answer."""
        return end_tokens(self.tokenizer, settings=self.usual)

    @cached_property
    def mark(self) -> str:
        """A word that stands in none of the texts."""
        said = json.dumps(self.tools, ensure_ascii=False) + "".join(message.said for message in self.messages)
        return next(word for word in (f"qz{number}zq" for number in range(len(said) + 1)) if word not in said)

    @cached_property
    def turns(self) -> list[dict[str, Any]]:
        """The messages as the template takes them."""
        return [self.turn(message) for message in self.messages]

    def turn(self, message: Message) -> dict[str, Any]:
        """One of them; a thought goes where the template looks for it, arguments in the form that it takes."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name and message.role == "tool":
            turn["name"] = message.name
        if message.call_id:
            turn["tool_call_id"] = message.call_id
        if message.role != "assistant":
            return turn
        if self.is_bare:
            message = without_thought(message)
            turn["content"] = message.content
        parts, name = thinking.part(message.content), reasoning_field(self.tokenizer)
        if parts and name:
            turn |= {name: parts.reasoning.strip("\n"), "content": parts.answer.lstrip()}
        if message.calls and (form := self.form):
            turn["tool_calls"] = [
                {"type": "function", "id": call.id}
                | {"function": {"name": call.name, "arguments": _arguments(call.arguments, form)}}
                for call in message.calls
            ]
            if name and self._is_all_thought(message):
                turn |= {name: f"{turn[name]}\n\n{turn['content']}", "content": ""}
            if not turn["content"].strip() or not form.keeps_words:
                turn["content"] = form.empty
        return turn

    @property
    def last(self) -> int:
        """The place of the last message."""
        return len(self.messages) - 1

    def is_asked(self, position: int) -> bool:
        """Whether an answer there is one: a greeting before the first question is none, unless it is all there is."""
        before = self.messages[:position]
        return any(message.role == "user" for message in before) or (bool(before) and position == self.last)

    def text(self, turns: list[dict[str, Any]], prompt: bool = False, settings: Mapping[str, Any] | None = None) -> str:
        """The turns as text, with or without the generation prompt."""
        return show(self.tokenizer, turns, self.tools, prompt, self.settings if settings is None else settings)

    @cached_property
    def plain(self) -> str:
        """The whole conversation as the template shows it."""
        return self.text(self.turns)

    def shown(self, count: int) -> str:
        """The first turns."""
        return self.text(self.turns[:count])

    def asked(self, position: int, usual: bool = False) -> str:
        """What is said before the answer at `position`, and the prompt for it; `usual` as a server asks."""
        key = (position, usual)
        if key not in self._texts:
            self._texts[key] = self.text(self.turns[:position], True, self.usual if usual else self.settings)
        return self._texts[key]

    def marked(self, position: int) -> tuple[str, str, str]:
        """What stands before and behind the words at `position`: (before, mark, behind), without a mark if nowhere."""
        turn = {**self.turns[position], "content": self.mark_for(self.messages[position].content)}
        return self._with(position, turn).partition(turn["content"])

    def _with(self, position: int, turn: dict[str, Any]) -> str:
        """The conversation with another turn at `position`."""
        turns = [*self.turns[:position], turn, *self.turns[position + 1 :]]
        if self.goes_on_from_prompt and position < len(turns) - 1:
            return self.text(turns[:-1], prompt=True)
        return self.text(turns)

    def mark_for(self, words: str) -> str:
        """The mark, beginning and ending otherwise than these words."""
        first, last = ("Z" if words[:1] == "Y" else "Y"), ("Z" if words[-1:] == "Y" else "Y")
        return f"{first}{self.mark}{last}"

    def loses_words(self, position: int) -> bool:
        """Whether the template leaves out what is said beside the calls at `position`."""
        message = self.messages[position]
        if not (message.calls and self.form and thinking.strip(message.content).strip()):
            return False
        if self._is_all_thought(message):
            return False
        return not self.form.keeps_words or not self.marked(position)[1]

    def _is_all_thought(self, message: Message) -> bool:
        """Whether words beside calls go behind the thought, as the template takes but one of them there."""
        parts = thinking.part(message.content)
        has_field = bool(parts and parts.answer.strip() and reasoning_field(self.tokenizer))
        return bool(message.calls and self.form and has_field and not self.form.keeps_words_and_thought)

    def calls_alone(self, position: int) -> str:
        """The calls at `position` as the template writes them behind the prompt, without words, and what follows.

        Raises ValueError where words stand beside them and no token tells where they begin.
        """
        asked = {"role": "user", "content": self.mark}
        turn = self.turn(replace(self.messages[position], content=""))
        alone = self.text([asked, turn])
        words = {"role": "assistant", "content": self.mark_for("")}
        calls = alone[len(common(alone, self.text([asked, words]))) :]
        begins = tuple(filter(str.strip, map(str, self.tokenizer.added_tokens_decoder.values())))
        if thinking.strip(self.messages[position].content).strip() and not calls.lstrip().startswith(begins):
            raise ValueError(f"it does not show the words beside a call; take them out, or {_AS_TEXT}")
        return calls

    def keeps_thought(self, position: int) -> bool:
        """Whether the template shows the thought of the answer at `position`."""
        message = self.messages[position]
        marked = f"{thinking.OPEN}{self.mark}{thinking.CLOSE}{thinking.strip(message.content)}"
        return self.mark in self._with(position, self.turn(replace(message, content=marked)))


_THINKS_TWICE = re.compile(rf"{thinking.CLOSE}\s*{thinking.OPEN}")
_AS_TEXT = "--set template.tools=text writes them as text"


def _arguments(text: str, form: ToolForm) -> Any:
    return text if form.takes_text else json.loads(text)


def without_thought(message: Message) -> Message:
    """An assistant's message without its reasoning."""
    return replace(message, content=thinking.strip(message.content)) if message.role == "assistant" else message


def _with_ids(messages: tuple[Message, ...], needs_nine: bool) -> tuple[Message, ...]:
    """The messages with an id for every call, which its result names; of nine characters where the template asks so.

    Results without one belong to the calls before them, in their order.
    """
    if not any(message.calls for message in messages):
        return messages
    found: list[Message] = []
    renamed: dict[str, str] = {}
    waiting: list[str] = []
    number = 0
    for message in messages:
        calls = []
        for call in message.calls:
            given = f"call{number:05d}" if not call.id or (needs_nine and len(call.id) != 9) else call.id
            renamed[call.id or given] = given
            waiting.append(given)
            calls.append(replace(call, id=given))
            number += 1
        call_id = renamed.get(message.call_id, message.call_id)
        if message.role == "tool" and waiting:
            call_id = call_id or waiting[0]
            waiting = [one for one in waiting if one != call_id]
        found.append(replace(message, calls=tuple(calls), call_id=call_id))
    return tuple(found)


def _systems_joined(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """System turns behind the first go into it, if they follow it, else before the words of the user's next turn.

    Where no user follows, they go behind those of the last.
    """
    found: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system" and found and all(one.role == "system" for one in found):
            found[0] = replace(found[0], content=f"{found[0].content}\n\n{message.content}")
        elif message.role == "system" and found:
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            found.append(replace(message, content="\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            found.append(message)
    last = max((number for number, message in enumerate(found) if message.role == "user"), default=None)
    if waiting and last is not None:
        found[last] = replace(found[last], content="\n\n".join([found[last].content, *waiting]))
    return tuple(found)


def _first_system_moved(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A system turn at the start, before the words of the first user's turn; where no user speaks it stays."""
    first, *others = messages
    asked = next((number for number, message in enumerate(others) if message.role == "user"), None)
    if first.role != "system" or asked is None:
        return messages
    others[asked] = replace(others[asked], content=f"{first.content}\n\n{others[asked].content}")
    return tuple(others)


def common(one: str, other: str) -> str:
    """What both begin with."""
    first, end = 0, min(len(one), len(other))
    while first < end:
        middle = (first + end + 1) // 2
        if one[first:middle] == other[first:middle]:
            first = middle
        else:
            end = middle - 1
    return one[:first]
