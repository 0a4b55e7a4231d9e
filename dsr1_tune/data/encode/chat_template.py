"""A record through the model's own chat template: its text, and which characters of it are to be learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from dsr1_tune.config import Sequences
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.record import Message, Record

Span = tuple[int, int]
"""First character, and the one behind the last."""

USUAL = Sequences()
"""The settings where none are given: answers are learned, with their reasoning."""

# No text holds it, so it shows where a template puts what somebody says.
_MARK = "\ufffc"
# Where templates that do not look for <think> themselves want an answer's reasoning.
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def render(record: Record, tokenizer: Any, sequences: Sequences = USUAL) -> tuple[str, list[Span]]:
    """The conversation as text, and the spans of it that are learned.

    An answer's span runs from behind the generation prompt to the end of its end-of-turn token, so that the model
    also learns to stop; another role's from where its words begin. The last answer goes on from the very prompt that
    asks for it: a template that removes its reasoning (DeepSeek-R1's does) gets it back unless it is stripped, and
    where the prompt opens <think>, an answer without reasoning closes it at once. Of earlier answers the template
    decides: those whose reasoning it removes are shown so, and not learned. Raises what the template raises, such as
    jinja2.TemplateError.
    """
    chat = _Chat(record, tokenizer)
    last = len(chat.messages) - 1
    plain = chat.shown()
    whole = _going_on(chat, plain)
    spans: list[Span] = []
    for position, message in enumerate(chat.messages):
        if message.role not in sequences.learn:
            continue
        said = thinking.strip(message.content) if sequences.think == "mask" else message.content
        if message.role != "assistant":
            span = _words(chat, position, plain)
        elif position == 0 or not said.strip():
            span = None  # nobody asked for it, or there is nothing but reasoning
        else:
            span = _answer(chat, position, whole if position == last else plain)
        if span and sequences.think == "mask" and message.role == "assistant":
            spans += _without_reasoning(chat, position, whole, span)
        elif span:
            spans.append(span)
    return whole, spans


def render_answer(record: Record, tokenizer: Any) -> tuple[str, Span | None]:
    """The conversation as `render` shows it, and where its last answer stands; None where nothing of it is shown."""
    chat = _Chat(record, tokenizer)
    last = len(chat.messages) - 1
    whole = _going_on(chat, chat.shown())
    return whole, _answer(chat, last, whole) if last and chat.messages[last].content.strip() else None


def prompt_text(record: Record, tokenizer: Any) -> str:
    """The conversation up to the last answer, as the model is asked for it."""
    return _Chat(record, tokenizer).shown(len(record.messages) - 1, prompt=True)


@dataclass(frozen=True)
class _Chat:
    """A conversation and the template that shows it."""

    record: Record
    tokenizer: Any

    @property
    def messages(self) -> Sequence[Message]:
        """Its turns."""
        return self.record.messages

    def shown(self, count: int | None = None, prompt: bool = False) -> str:
        """The first `count` turns (all), with or without the generation prompt."""
        turns = [self._turn(message) for message in self.messages[:count]]
        tools = json.loads(self.record.tools) if self.record.tools else None
        text: str = self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=prompt)
        return text

    def saying(self, position: int, content: str) -> _Chat:
        """The same conversation with other words at `position`."""
        turns = list(self.messages)
        turns[position] = replace(turns[position], content=content)
        return _Chat(replace(self.record, messages=tuple(turns)), self.tokenizer)

    def _turn(self, message: Message) -> dict[str, str]:
        turn = {"role": message.role, "content": message.content}
        parts = thinking.part(message.content) if message.role == "assistant" else None
        if parts and (field := self.reasoning_field()):
            turn |= {field: parts.reasoning.strip("\n"), "content": parts.answer.lstrip()}
        return turn

    def reasoning_field(self) -> str | None:
        """The field of a turn in which the template looks for its reasoning, where it knows no tags."""
        template = str(self.tokenizer.chat_template)
        if thinking.CLOSE in template:
            return None
        return next((field for field in _REASONING_FIELDS if field in template), None)


def _going_on(chat: _Chat, plain: str) -> str:
    """The text `plain`, with the last answer as the model has to say it when it is asked."""
    last = len(chat.messages) - 1
    content = chat.messages[last].content
    parts = thinking.part(content)
    asked = chat.shown(last, prompt=True)
    is_opened = asked.rstrip().endswith(thinking.OPEN)
    if plain.startswith(asked) and is_opened:
        return plain
    if not is_opened and (not parts or _keeps_reasoning(chat, last)):
        return plain
    before, mark, behind = chat.saying(last, _MARK).shown().partition(_MARK)
    if not mark or not asked.startswith(before) or not thinking.strip(content).strip():
        return plain
    if not is_opened:
        return before + content + behind
    blank = asked[len(asked.rstrip()) :]
    if not parts:
        return asked + ("" if blank else "\n") + thinking.EMPTY + content + behind
    return asked + parts.reasoning.removeprefix(blank) + thinking.CLOSE + parts.answer + behind


def _keeps_reasoning(chat: _Chat, position: int) -> bool:
    """Whether the template shows the reasoning of the answer at `position`, the last turn shown."""
    marked = f"{thinking.OPEN}{_MARK}{thinking.CLOSE}{thinking.strip(chat.messages[position].content)}"
    return _MARK in chat.saying(position, marked).shown(position + 1)


def _answer(chat: _Chat, position: int, whole: str) -> Span | None:
    """An answer with its end-of-turn token, from where the prompt for it ends."""
    content = chat.messages[position].content
    is_last = position == len(chat.messages) - 1
    through = whole if is_last else chat.shown(position + 1)
    if not is_last and thinking.part(content) and not _keeps_reasoning(chat, position):
        return None
    if not whole.startswith(through):
        # The template shows earlier turns otherwise than the last: the words at least may be the same.
        span = _words(chat, position, whole)
        return span if span and whole[slice(*span)].strip() == content.strip() else None
    if content.strip() not in through and through == chat.saying(position, "").shown(position + 1):
        return None  # an answer of reasoning alone, which the template removes
    # Where the prompt holds more than the finished turn (an opened <think>, say), learn from where they part.
    asked = chat.shown(position, prompt=True)
    first = _common_prefix(asked, through)
    if first < len(asked):
        # The two may part late: "<think>" and an answer's "<table>" begin alike.
        first = min(first, _common_prefix(chat.saying(position, _MARK).shown(position + 1), through))
    end = first + len(through[first:].rstrip())
    return (first, end) if end > first else None


def _words(chat: _Chat, position: int, plain: str) -> Span | None:
    """What is said at `position`, without its header, to the end of its end-of-turn token if that can be told."""
    from jinja2 import TemplateError

    before, mark, behind = chat.saying(position, _MARK).shown().partition(_MARK)
    end = len(plain) - len(behind)
    if not mark or _MARK in behind or not plain.startswith(before) or not plain.endswith(behind) or end <= len(before):
        return None
    try:
        through = chat.shown(position + 1).rstrip()
    except TemplateError:  # a conversation must not stop there
        through = ""
    if plain.startswith(through):
        end = max(end, len(through))
    return len(before), end


def _without_reasoning(chat: _Chat, position: int, whole: str, span: Span) -> list[Span]:
    """The parts of an answer's span that are no reasoning."""
    first, end = span
    parts = thinking.part(chat.messages[position].content)
    if parts and chat.reasoning_field():
        said = whole.rfind(parts.answer.strip(), first, end)
        return [(said, end)] if parts.answer.strip() and said >= 0 else []
    before = whole[:first].rstrip()
    start = len(before) - len(thinking.OPEN) if before.endswith(thinking.OPEN) else first
    kept = []
    for start_of_reasoning, behind in thinking.find(whole[start:end]):
        kept.append((first, start + start_of_reasoning))
        first = start + behind
    # A line break between header and reasoning is no part of the answer either.
    return [(one, other) for one, other in [*kept, (first, end)] if whole[one:other].strip()]


def _common_prefix(one: str, other: str) -> int:
    if other.startswith(one):
        return len(one)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
