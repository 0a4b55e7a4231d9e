"""A record as the model sees it: token ids, and labels on what is to be learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from jinja2 import TemplateError

from dsr1_tune.config import Encoding
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.chat import USUAL, without_thought
from dsr1_tune.data.encode.chat_template import render, render_prompt
from dsr1_tune.data.encode.template import TEMPLATE_ERRORS, cuts_at_closing
from dsr1_tune.data.encode.tokens import IGNORED, Tokens
from dsr1_tune.data.record import Drop, Message, Record

__all__ = ["IGNORED", "Encoded", "Example", "encode", "encode_all", "prompt_ids", "prompt_tokens"]

_SHORTEN = "shorten it, raise schedule.max_tokens, or cut it with sequences.longer=truncate"


@dataclass(frozen=True, slots=True)
class Example:
    """A record, or a part of one, as the model sees it: `labels` are `input_ids` where they are learned, else IGNORED.

    `record` holds the turns that are encoded here, in the place of the whole one; `num_cut` tokens were cut off.
    """

    record: Record
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    num_cut: int = 0
    num_control: int = 0
    """Control tokens that its texts hold, as text."""
    apart: tuple[int, ...] = ()
    """The calls that are not learned here: see `Rendered.apart`."""
    moves_system: bool = False
    """Whether system turns stand elsewhere: see `Rendered.moves_system`."""


@dataclass(frozen=True)
class Encoded:
    """What became of many records: the examples of each in their order, and the records of which none came.

    `lost_parts` are parts of split records that were too long by themselves, while other parts are among the examples.
    """

    examples: list[Example]
    drops: list[Drop]
    num_truncated: int = 0
    num_split: int = 0
    lost_parts: tuple[Drop, ...] = ()

    def __iter__(self) -> Iterator[Any]:
        """`examples, drops = encode_all(...)`."""
        return iter((self.examples, self.drops))


def encode_all(records: Iterable[Record], tokenizer: Any, max_tokens: int, encoding: Encoding = USUAL) -> Encoded:
    """Encode every record; those that the template refuses or that exceed `max_tokens` come back as Drops."""
    examples: list[Example] = []
    drops: list[Drop] = []
    lost_parts: list[Drop] = []
    num_split = 0
    for record in records:
        outcomes: Sequence[Example | Drop] = [encode(record, tokenizer, max_tokens, encoding)]
        first = outcomes[0]
        if encoding.sequences.longer == "split" and isinstance(first, Drop) and first.code == "too_long":
            outcomes = _split(record, tokenizer, max_tokens, encoding) or outcomes
            num_split += len(outcomes) > 1 and any(isinstance(outcome, Example) for outcome in outcomes)
        apart = list(_calls_apart(outcomes, tokenizer, max_tokens, encoding))
        refused = [one for one in apart if isinstance(one, Drop) and one.code == "template_refused"]
        outcomes = refused or [*outcomes, *apart]
        found = [outcome for outcome in outcomes if isinstance(outcome, Example)]
        lost = [one.at(record.place, "encode", record.row) for one in outcomes if isinstance(one, Drop)]
        examples += found
        if found:
            lost_parts += lost
        else:
            drops.append(lost[0])
    num_truncated = sum(example.num_cut > 0 for example in examples)
    return Encoded(examples, drops, num_truncated, num_split, tuple(lost_parts))


def encode(record: Record, tokenizer: Any, max_tokens: int, encoding: Encoding = USUAL) -> Example | Drop:
    """One record → token ids and labels, or why it cannot be; with sequences.longer=truncate its end may be cut."""
    if encoding.sequences.think == "strip":
        record = replace(record, messages=tuple(map(without_thought, record.messages)))
    if drop := cut_by_template(record.messages, tokenizer, encoding):
        return drop
    try:
        tokens = Tokens.of(record, tokenizer, encoding, render)
    except TEMPLATE_ERRORS as error:
        return refused_by_template(
            error, record.messages, lambda messages: render(replace(record, messages=messages), tokenizer, encoding)
        )
    ids, rendered = tokens.ids, tokens.rendered
    labels = tokens.labels(rendered.spans)
    num_cut = max(0, len(ids) - max_tokens)
    if num_cut and encoding.sequences.longer != "truncate":
        return _too_long(record, len(ids), max_tokens, _SHORTEN)
    # The first token's label is never predicted: nothing stands before it.
    if not _is_learned(labels):
        return _nothing_to_learn(record, encoding)
    own = tokens.labels(sorted(rendered.own)) if num_cut and rendered.own else labels
    if not _is_learned(own[:max_tokens]):
        fix = "raise schedule.max_tokens: what is learned stands behind the cut"
        return _too_long(record, len(ids), max_tokens, fix)
    return Example(
        record,
        tuple(ids[:max_tokens]),
        tuple(labels[:max_tokens]),
        num_cut,
        num_control=tokens.num_control,
        apart=rendered.apart,
        moves_system=rendered.moves_system,
    )


def refused_by_template(
    error: Exception, messages: tuple[Message, ...], show: Callable[[tuple[Message, ...]], object]
) -> Drop:
    """The row whose messages the model's chat template refuses with one of TEMPLATE_ERRORS.

    `show` shows some of them: so the turn is found with which the refusal begins.
    """
    path = _refused_at(error, messages, show)
    if type(error) in (TemplateError, ValueError):
        fix = "change the turns or roles as it says, or choose another base"
        return Drop("template_refused", f"the model's chat template refuses it: {error}", fix, path)
    detail = f"the model's chat template fails on it: {type(error).__name__}: {error}"
    fix = "the template was not made for such turns: write them otherwise, or choose another base"
    return Drop("template_refused", detail, fix, path)


def _refused_at(error: Exception, messages: tuple[Message, ...], show: Callable[[tuple[Message, ...]], object]) -> str:
    """The path of the turn without which what stands before it is shown; "$" where no turn is found to be at fault."""

    def is_shown(some: tuple[Message, ...]) -> bool:
        try:
            show(some)
        except TEMPLATE_ERRORS as other:
            return str(other) != str(error)
        return True

    shown = next((number for number, message in enumerate(messages, 1) if message.role == "user"), len(messages))
    if not is_shown(messages[:shown]):
        # No part of it is a conversation: it is a turn before the first question, or none.
        rest = (messages[:number] + messages[number + 1 : shown] for number in range(shown - 1))
        return next((message.path for message, some in zip(messages, rest, strict=False) if is_shown(some)), "$")
    refused = len(messages)
    while refused - shown > 1:
        middle = (shown + refused) // 2
        shown, refused = (middle, refused) if is_shown(messages[:middle]) else (shown, middle)
    return messages[shown].path if shown < len(messages) else "$"


def cut_by_template(messages: Sequence[Message], tokenizer: Any, encoding: Encoding) -> Drop | None:
    """Why an answer cannot be learned that holds </think> again behind its thought, where the template cuts at it."""
    if not cuts_at_closing(tokenizer, encoding.template.kwargs):
        return None
    for message in messages:
        is_answer = message.role == "assistant" and message.is_learned
        if is_answer and thinking.CLOSE in thinking.strip(message.content):
            detail = "the model's chat template cuts an answer at </think>, and more than one stands in it"
            fix = "let one </think> stand between the thought and the answer, or choose another base"
            return Drop("thought_closed_twice", detail, fix, message.path)
    return None


def prompt_ids(record: Record, tokenizer: Any, encoding: Encoding = USUAL, usual: bool = False) -> list[int]:
    """The conversation up to the last answer, as the model is asked for it, in tokens; see `render_prompt`.

    Raises what the template raises, one of TEMPLATE_ERRORS.
    """
    return prompt_tokens(record, tokenizer, encoding, usual).ids


def prompt_tokens(record: Record, tokenizer: Any, encoding: Encoding = USUAL, usual: bool = False) -> Tokens:
    """The same with what was done to it."""
    return Tokens.of(record, tokenizer, encoding, partial(render_prompt, usual=usual))


def _is_learned(labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in labels[1:])


def _too_long(record: Record, num_tokens: int, max_tokens: int, fix: str) -> Drop:
    detail = f"{num_tokens:,} tokens, {max_tokens:,} are allowed"
    return Drop("too_long", detail, fix=fix, path=record.messages[-1].path)


def _nothing_to_learn(record: Record, encoding: Encoding) -> Drop:
    think = encoding.sequences.think
    if not any(message.is_learned for message in record.messages if message.role in encoding.sequences.learn):
        detail = "its author lets none of its answers be learned (weight, loss, train or masked)"
        return Drop("nothing_to_learn", detail, "leave it out, or let one be learned", record.messages[-1].path)
    if think == "keep":
        detail = "the model's chat template leaves nothing of the answer"
        fix = "look at the answer as the template shows it; it may hold only what the template removes"
    else:
        detail = f"without its thoughts (sequences.think={think}) nothing of the answer is left to learn"
        fix = "close the thought with </think> and answer behind it"
    return Drop("nothing_to_learn", detail, fix, record.messages[-1].path)


def _split(record: Record, tokenizer: Any, max_tokens: int, encoding: Encoding) -> list[Example | Drop]:
    """As few examples as hold the conversation, each of whole exchanges behind the system prompt."""
    system, exchanges = _exchanges(record.messages)
    outcomes: list[Example | Drop] = []
    taken: list[tuple[Message, ...]] = []

    def encoded(*some: tuple[Message, ...]) -> Example | Drop:
        messages = (*system, *chain.from_iterable(some))
        return encode(replace(record, messages=messages), tokenizer, max_tokens, encoding)

    for exchange in exchanges:
        longer = encoded(*taken, exchange)
        if taken and isinstance(longer, Drop):
            taken = []
            longer = encoded(exchange)
        elif taken:
            outcomes.pop()
        outcomes.append(longer)
        taken = [*taken, exchange] if isinstance(longer, Example) else []
    return outcomes


def _calls_apart(
    outcomes: Sequence[Example | Drop], tokenizer: Any, max_tokens: int, encoding: Encoding
) -> Iterator[Example | Drop]:
    """The calls that a conversation shows otherwise than they are asked for, each as the last turn of one."""
    for example in (outcome for outcome in outcomes if isinstance(outcome, Example)):
        messages = example.record.messages
        answers = [number for number, message in enumerate(messages) if message.role == "assistant"]
        for number in example.apart:
            *before, call = messages[: answers[number] + 1]
            alone = (*(replace(message, is_learned=False) for message in before), call)
            yield encode(replace(example.record, messages=alone), tokenizer, max_tokens, encoding)


def _exchanges(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The system prompt, and what follows: each exchange begins with the user and ends with the assistant."""
    num_system = next((number for number, message in enumerate(messages) if message.role != "system"), 0)
    exchanges: list[tuple[Message, ...]] = []
    for message in messages[num_system:]:
        if message.role == "user" or not exchanges:
            exchanges.append((message,))
        else:
            exchanges[-1] += (message,)
    return tuple(messages[:num_system]), exchanges
