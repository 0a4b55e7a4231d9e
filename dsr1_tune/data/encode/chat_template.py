"""A record through the model's own chat template: its text, and which characters of it are to be learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dsr1_tune.config import Encoding, Template
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.chat import USUAL, Chat, common, thinks
from dsr1_tune.data.encode.control_tokens import Span
from dsr1_tune.data.encode.template import TEMPLATE_ERRORS, any_of, reasoning_field
from dsr1_tune.data.record import Message, Record


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans of it that are learned.

    `apart` are the answers, counted from 0 as system turns may move, whose calls are shown otherwise here than they are
    asked for: each has to be learned as the last turn of a conversation of its own.
    """

    text: str
    spans: list[Span]
    apart: tuple[int, ...] = ()

    moves_system: bool = False
    """Whether system turns stand elsewhere, as the template cannot show them in their places."""
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
    wanted = [
        number
        for number, message in enumerate(chat.messages)
        if message.role == "assistant" and chat.is_asked(number) and (message.is_learned or number == chat.last)
    ]
    text = _Text(chat, wanted)
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
        if not chat.is_asked(position) or not (said.strip() or message.calls):
            continue  # nobody asked for it, or there is nothing but reasoning
        span = text.answer(position)
        if span is None and message.calls:
            apart.append(sum(one.role == "assistant" for one in chat.messages[:position]))
        elif span:
            own.append((_first_said(message, text.whole, span), span[1]))
            spans += _without_reasoning(chat, position, text.whole, span) if mask else [span]
    return Rendered(text.whole, sorted(spans), tuple(apart), chat.moves_system, tuple(own))


def render_answer(
    record: Record, tokenizer: Any, encoding: Encoding = USUAL, is_thinking: bool | None = None
) -> Rendered:
    """The conversation as `render` shows it, of which the last answer is the only span, if anything of it is shown.

    `is_thinking` is the mode, where it is not for the answer's own thought to say.
    """
    chat = Chat.of(record, tokenizer, encoding, is_thinking)
    last = chat.last
    text = _Text(chat, [last] if last else [])
    span = text.answer(last) if last and chat.messages[last].said.strip() else None
    return Rendered(text.whole, [span] if span else [], moves_system=chat.moves_system)


def render_prompt(record: Record, tokenizer: Any, encoding: Encoding = USUAL, usual: bool = False) -> Rendered:
    """The conversation up to the last answer, as the model is asked for it: in that answer's mode, or as is `usual`."""
    before = replace(record, messages=record.messages[:-1])
    chat = Chat.of(before, tokenizer, encoding, thinks(record.messages))
    return Rendered(chat.asked(len(chat.messages), usual), [], moves_system=chat.moves_system)


class _Text:
    """The text of a conversation, and where some of its answers stand in it.

    The template's own text, `plain`, with the last answer as the model has to say it; and what the template leaves out
    put in: words that it drops beside a call, and ends that it does not write.
    """

    def __init__(self, chat: Chat, wanted: list[int]) -> None:
        self.chat = chat
        self._added: list[tuple[int, str]] = []
        self._last = chat.last
        is_answer = chat.messages[self._last].role == "assistant"
        self._text = _going_on(chat) if is_answer else chat.plain
        self._starts: dict[int, int | None] = {}
        self._spans = {number: self._find(number) for number in wanted}
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

    def _with_additions(self) -> str:
        text = self._text
        for place, added in sorted(self._added, reverse=True):
            text = text[:place] + added + text[place:]
        return text

    def _start_of(self, position: int) -> int | None:
        if position not in self._starts:
            self._starts[position] = _start(self.chat, position, self._text)
        return self._starts[position]

    def _until(self, position: int) -> int:
        """Where what follows an answer begins to be said."""
        messages = self.chat.messages
        if position < self._last and messages[position + 1].role == "system":
            return len(self.chat.marked(position + 1)[0])
        answers = (number for number in range(position + 1, len(messages)) if messages[number].role == "assistant")
        following = next((start for start in map(self._start_of, answers) if start is not None), None)
        return len(self._text) if following is None else following

    def _find(self, position: int) -> Span | None:
        chat, message = self.chat, self.chat.messages[position]
        start, is_last = self._start_of(position), position == self._last
        if start is None or (not is_last and thinking.part(message.content) and not chat.keeps_thought(position)):
            return None
        if not is_last and chat.loses_words(position):
            return None
        is_thought = bool(thinking.part(message.content)) and not thinking.strip(message.content).strip()
        if is_last and is_thought and not message.calls and not chat.keeps_thought(position):
            return None  # an answer of reasoning alone, which the template removes
        ends = any_of({chat.ends.answer, chat.ends.call or chat.ends.answer})
        found = ends.search(self._text, start, self._until(position))
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
            return start + len(common(self._text[start:], chat.shown(position + 1)[start:]).rstrip())
        _, mark, behind = chat.marked(position)
        if not mark:
            return start
        if position == self._last:
            return len(self._text) - len(behind)
        return len(chat.plain) - len(common(behind[::-1], chat.plain[::-1]))


def _going_on(chat: Chat) -> str:
    """The template's text, with the last answer as the model has to say it when it is asked."""
    last = chat.last
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
    is_in_mode = any(chat.settings.get(switch) is True for switch in Template.switches)
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
    if chat.messages[position].calls and not text.startswith(asked):
        return None
    if ways := [len(prompt) for prompt in (asked, usual) if text.startswith(prompt)]:
        return min(ways)
    # The two may part late: "<think>" and an answer's "<table>" begin alike.
    together = len(common("".join(chat.marked(position)), text))
    history, first = common(asked, chat.shown(position)), len(common(asked, text))
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
