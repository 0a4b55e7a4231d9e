"""A record through the model's own chat template: its text, and which characters of it are to be learned."""

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
    SWITCHES,
    TEMPLATE_ERRORS,
    ToolForm,
    arguments,
    reasoning_field,
    show,
    tool_form,
)
from dsr1_tune.data.encode.tool_text import as_text, functions
from dsr1_tune.data.record import Message, Record

Span = tuple[int, int]
"""First character, and the one behind the last."""
USUAL = Encoding()
"""The settings where none are given: answers are learned, with their reasoning."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans of it that are learned.

    `apart` are the places of calls that are shown otherwise here than they are asked for: each has to be learned as the
    last turn of a conversation of its own.
    """

    text: str
    spans: list[Span]
    apart: tuple[int, ...] = ()

    moves_system: bool = False
    """Whether system turns behind the first stand elsewhere, as the template cannot show them in their places."""
    own: tuple[Span, ...] = ()
    """What of the answers' spans their authors said, without the frame that a template puts before it (</think>)."""


def render(record: Record, tokenizer: Any, encoding: Encoding = USUAL) -> Rendered:
    """The conversation as text, and the spans of it that are learned.

    An answer's span runs from behind the generation prompt to the token that ends it, so that the model also learns to
    stop; another role's from where its words begin. The last answer goes on from the very prompt that asks for it: a
    template that removes its reasoning (DeepSeek-R1's does) gets it back unless it is stripped, and where the prompt
    opens <think>, an answer without reasoning closes it at once. Of earlier answers the template decides: those whose
    reasoning it removes are shown so, and not learned, unless they call functions: see `Rendered.apart`. Raises what
    the template raises, such as jinja2.TemplateError, and ValueError where it has no form for what the record holds.
    """
    chat = Chat.of(record, tokenizer, encoding)
    learn, mask = encoding.sequences.learn, encoding.sequences.think == "mask"
    text = _Text(chat)
    spans: list[Span] = []
    own: list[Span] = []
    apart = []
    for position, message in enumerate(chat.messages):
        if message.role not in learn or not message.is_learned:
            continue
        if message.role != "assistant":
            if span := _words(chat, position):
                spans.append(text.moved(span))
            continue
        said = thinking.strip(message.content) if mask else message.content
        if position == 0 or not (said.strip() or message.calls):
            continue  # nobody asked for it, or there is nothing but reasoning
        span = text.answer(position)
        if span is None and message.calls:
            apart.append(position)
        elif span:
            own.append((_first_said(message, text.whole, span), span[1]))
            spans += _without_reasoning(chat, position, text.whole, span) if mask else [span]
    return Rendered(text.whole, sorted(spans), tuple(apart), chat.moves_system, tuple(own))


def render_answer(
    record: Record, tokenizer: Any, encoding: Encoding = USUAL, is_thinking: bool | None = None
) -> tuple[str, Span | None]:
    """The conversation as `render` shows it, and where its last answer stands; None where nothing of it is shown.

    `is_thinking` is the mode, where it is not for the answer's own thought to say.
    """
    chat = Chat.of(record, tokenizer, encoding, is_thinking)
    last = len(chat.messages) - 1
    text = _Text(chat)
    return text.whole, text.answer(last) if last and chat.messages[last].said.strip() else None


def prompt_text(record: Record, tokenizer: Any, encoding: Encoding = USUAL, usual: bool = False) -> str:
    """The conversation up to the last answer, as the model is asked for it: in that answer's mode, or as is `usual`."""
    chat = Chat.of(record, tokenizer, encoding)
    return chat.asked(len(chat.messages) - 1, usual)


def thinks(messages: tuple[Message, ...]) -> bool:
    """Whether the answer to the last question holds a thought, on its way through calls and results."""
    last = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    return any(message.role == "assistant" and thinking.part(message.content) for message in messages[last + 1 :])


# --- what the template is given --------------------------------------------------------------------------------------


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
    ends: EndTokens
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
        settings = arguments(tokenizer, encoding.template, is_thinking)
        if encoding.template.tools == "text":
            record = as_text(record)
        ends = end_tokens(tokenizer, settings=usual)
        form = tool_form(tokenizer, usual) if any(message.calls for message in record.messages) else None
        return cls(
            record.messages, functions(record.tools), tokenizer, settings, usual, ends, form, is_thinking
        )._complete()

    def _complete(self) -> Chat:
        """The chat, with system turns where the template can show them. Raises ValueError where a turn is not shown."""
        if any(message.calls for message in self.messages) and not self.form:
            raise ValueError(f"it has no form for tool calls; {_AS_TEXT}")
        if self.form and not self._shows_calls():
            raise ValueError(f"it shows only one of several calls in a turn; write them one by one, or {_AS_TEXT}")
        if any(message.role == "system" for message in self.messages[1:]) and not self._shows("system"):
            self = replace(self, messages=_systems_joined(self.messages), moves_system=True, _texts={})
        if any(message.role == "tool" for message in self.messages) and not self._shows("tool"):
            raise ValueError(f"it does not show the results of tools; {_AS_TEXT}")
        if _THINKS_TWICE.search(self.plain):
            self = replace(self, is_bare=True, _texts={})
        return replace(self, goes_on_from_prompt=True, _texts={}) if self._is_shown_otherwise() else self

    def _is_shown_otherwise(self) -> bool:
        """Whether the turns before the last answer are shown otherwise once it is given than when it is asked for."""
        last = len(self.messages) - 1
        if last < 2 or self.messages[last].role != "assistant":
            return False
        asked = self.asked(last)
        return len(_common(asked, self.plain)) < len(_common(asked, self.shown(last)))

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
                {"type": "function", "id": call.id or f"call{number:05d}"}
                | {"function": {"name": call.name, "arguments": _arguments(call.arguments, form)}}
                for number, call in enumerate(message.calls)
            ]
            if name and self._is_all_thought(message):
                turn |= {name: f"{turn[name]}\n\n{turn['content']}", "content": ""}
            if not turn["content"].strip() or not form.keeps_words:
                turn["content"] = form.empty
        return turn

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
        calls = alone[len(_common(alone, self.text([asked, words]))) :]
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


# --- where it is learned ---------------------------------------------------------------------------------------------


class _Text:
    """The text of a conversation, and where its answers stand in it.

    The template's own text, `plain`, with the last answer as the model has to say it; and what the template leaves out
    put in: words that it drops beside a call, and ends that it does not write.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._added: list[tuple[int, str]] = []
        self._last = len(chat.messages) - 1
        is_answer = chat.messages[self._last].role == "assistant"
        self._text = _going_on(chat) if is_answer else chat.plain
        self._spans = {number: self._find(number) for number in self._answers()}
        self.whole = self._with_additions()

    def answer(self, position: int) -> Span | None:
        """An answer with the token that ends it, from where the prompt for it ends; None where it is not shown."""
        span = self._spans.get(position)
        return span and self.moved(span, is_answer=True)

    def moved(self, span: Span, is_answer: bool = False) -> Span:
        """A span of the template's text in the whole one."""
        first, end = span
        first += sum(len(text) for place, text in self._added if place < first)
        end += sum(len(text) for place, text in self._added if place < end or (is_answer and place == end))
        return first, end

    def _answers(self) -> list[int]:
        return [number for number, message in enumerate(self.chat.messages) if number and message.role == "assistant"]

    def _with_additions(self) -> str:
        text = self._text
        for place, added in sorted(self._added, reverse=True):
            text = text[:place] + added + text[place:]
        return text

    @cached_property
    def _starts(self) -> dict[int, int | None]:
        return {number: _start(self.chat, number, self._text) for number in self._answers()}

    def _find(self, position: int) -> Span | None:
        chat, message = self.chat, self.chat.messages[position]
        start, is_last = self._starts[position], position == self._last
        if start is None or (not is_last and thinking.part(message.content) and not chat.keeps_thought(position)):
            return None
        if not is_last and chat.loses_words(position):
            return None
        is_thought = bool(thinking.part(message.content)) and not thinking.strip(message.content).strip()
        if is_last and is_thought and not message.calls and not chat.keeps_thought(position):
            return None  # an answer of reasoning alone, which the template removes
        following = [first for first in self._starts.values() if first is not None and first > start]
        until = min(following, default=len(self._text))
        if not is_last and chat.messages[position + 1].role == "system":
            until = len(chat.marked(position + 1)[0])
        ends = sorted({chat.ends.answer, chat.ends.call or chat.ends.answer}, key=len, reverse=True)
        found = re.compile("|".join(map(re.escape, ends))).search(self._text, start, until)
        if found:
            return start, found.end()
        end = self._end_of_words(position, start)
        if end <= start:
            return None
        if is_last or message.calls:
            token = (chat.ends.call if message.calls else None) or chat.ends.answer
            self._added.append((end, token))
        if is_last:
            self._text = self._text[:end]
        return start, end

    def _end_of_words(self, position: int, start: int) -> int:
        """Where an answer ends behind which the template writes no end: behind its words, or the frame of its calls."""
        chat, message = self.chat, self.chat.messages[position]
        if message.calls and position == self._last:
            return len(self._text.rstrip())
        if message.calls:
            return start + len(_common(self._text[start:], chat.shown(position + 1)[start:]).rstrip())
        _, mark, behind = chat.marked(position)
        if not mark:
            return start
        if position == self._last:
            return len(self._text) - len(behind)
        return len(chat.plain) - len(_common(behind[::-1], chat.plain[::-1]))


def _going_on(chat: Chat) -> str:
    """The template's text, with the last answer as the model has to say it when it is asked."""
    last = len(chat.messages) - 1
    message, plain, asked = chat.messages[last], chat.plain, chat.asked(last)
    parts = thinking.part(message.content)
    is_opened = asked.rstrip().endswith(thinking.OPEN)
    if chat.goes_on_from_prompt and not is_opened:
        start = _start(replace(chat, goes_on_from_prompt=False), last, plain)
        if start is not None:
            return asked + plain[start:]
    goes_on = plain.startswith(asked) if is_opened else not parts or chat.keeps_thought(last)
    loses_words = chat.loses_words(last)
    goes_on = goes_on and not loses_words and (plain.startswith(asked) or not message.calls)
    if goes_on:
        return plain
    answer = parts.answer if parts else message.content
    if message.calls and (loses_words or not answer.strip() or not is_opened):
        before, behind = asked.removesuffix(thinking.OPEN), chat.calls_alone(last)
    else:
        before, mark, behind = chat.marked(last)
        if not mark:
            return plain
    is_in_mode = any(chat.settings.get(switch) is True for switch in SWITCHES)
    may_go_on = asked.startswith(before) or (is_opened and (parts or is_in_mode))
    if not may_go_on or not (answer.strip() or message.calls):
        return plain
    if not is_opened:
        return (asked if message.calls else before) + message.content + behind
    return asked + _closed(parts, message.content, asked, is_in_mode) + behind


def _closed(parts: thinking.Reasoned | None, content: str, asked: str, is_in_mode: bool) -> str:
    """An answer behind a prompt that has opened its thought, with blanks as the prompt has them."""
    blank = asked[len(asked.rstrip()) :]
    if parts and not blank:
        return parts.reasoning.strip("\n") + thinking.CLOSE + parts.answer.lstrip("\n")
    if parts:
        return parts.reasoning.removeprefix(blank) + thinking.CLOSE + parts.answer
    if is_in_mode and not blank:
        return thinking.CLOSE + content
    return ("" if blank else "\n") + thinking.EMPTY + content


def _start(chat: Chat, position: int, text: str) -> int | None:
    """Where the answer at `position` begins in the conversation's text: where the prompt for it ends.

    Where the prompt holds more than the finished turn (an opened <think>, say), it is where the two part; None for
    calls, which are learned only where they are asked for just so. An answer in another mode than the usual one is
    learned from behind the usual prompt, where that leads to the same text: so it is given in both.
    """
    asked = chat.asked(position)
    usual = chat.asked(position, usual=True) if chat.usual != chat.settings and not chat.is_thinking else asked
    if ways := [len(prompt) for prompt in (asked, usual) if text.startswith(prompt)]:
        return min(ways)
    if chat.messages[position].calls:
        return None
    # The two may part late: "<think>" and an answer's "<table>" begin alike.
    together = len(_common("".join(chat.marked(position)), text))
    history, first = _common(asked, chat.shown(position)), len(_common(asked, text))
    if first > len(history):
        return min(first, together)
    # The turns before are shown otherwise once more has been said; the header is mostly the same.
    header, said = asked[len(history) :], len(chat.marked(position - 1)[0])
    place = text.find(header, said, together + len(header)) if header.strip() else -1
    return min(together, place + len(header)) if place >= 0 else together


def _words(chat: Chat, position: int) -> Span | None:
    """What is said at `position`, without its header, to the end of its end-of-turn token if that can be told."""
    plain = chat.plain
    before, mark, behind = chat.marked(position)
    end = len(plain) - len(behind)
    if not mark or not plain.startswith(before) or not plain.endswith(behind) or end <= len(before):
        return None
    try:
        through = chat.shown(position + 1).rstrip()
    except TEMPLATE_ERRORS:  # a conversation must not stop there
        through = ""
    if plain.startswith(through):
        end = max(end, len(through))
    return len(before), end


def _without_reasoning(chat: Chat, position: int, whole: str, span: Span) -> list[Span]:
    """The parts of an answer's span that are no reasoning."""
    first, end = span
    message = chat.messages[position]
    parts = thinking.part(message.content)
    if parts and reasoning_field(chat.tokenizer):
        thought = parts.reasoning.strip()
        behind = whole.find(thought, first, end) + len(thought)
        said = whole.rfind(parts.answer.strip(), behind, end) if parts.answer.strip() else behind
        return [(said, end)] if said >= 0 and (parts.answer.strip() or message.calls) else []
    before = whole[:first].rstrip()
    start = len(before) - len(thinking.OPEN) if before.endswith(thinking.OPEN) else first
    kept = []
    for start_of_reasoning, behind in thinking.find(whole[start:end]):
        kept.append((first, start + start_of_reasoning))
        first = start + behind
    # A line break between header and reasoning is no part of the answer either.
    return [(one, other) for one, other in [*kept, (first, end)] if whole[one:other].strip()]


def _first_said(message: Message, text: str, span: Span) -> int:
    """Where in an answer's span its author's own words begin."""
    parts = thinking.part(message.content)
    words = (parts.reasoning.strip() if parts else "") or thinking.strip(message.content).strip()
    if message.calls and not words:
        words = message.calls[0].name
    return max(span[0], text.find(words[:32], *span))


def _common(one: str, other: str) -> str:
    """What both begin with."""
    first, end = 0, min(len(one), len(other))
    while first < end:
        middle = (first + end + 1) // 2
        if one[first:middle] == other[first:middle]:
            first = middle
        else:
            end = middle - 1
    return one[:first]
