"""A record as the model sees it: token ids, and labels on what is to be learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dsr1_tune.config import Sequences
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.encode.chat_template import USUAL, Span, prompt_text, render
from dsr1_tune.data.record import Drop, Message, Record

__all__ = ["IGNORED", "Encoded", "Example", "Span", "encode", "encode_all", "prompt_text", "render"]

IGNORED = -100
"""The label of a token that is not learned; the loss skips it."""
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


def encode_all(records: Iterable[Record], tokenizer: Any, max_tokens: int, sequences: Sequences = USUAL) -> Encoded:
    """Encode every record; those that the template refuses or that exceed `max_tokens` come back as Drops."""
    examples: list[Example] = []
    drops: list[Drop] = []
    lost_parts: list[Drop] = []
    num_split = 0
    for record in records:
        outcomes: Sequence[Example | Drop] = [encode(record, tokenizer, max_tokens, sequences)]
        first = outcomes[0]
        if sequences.longer == "split" and isinstance(first, Drop) and first.code == "too_long":
            outcomes = _split(record, tokenizer, max_tokens, sequences) or outcomes
        found = [outcome for outcome in outcomes if isinstance(outcome, Example)]
        lost = [one.at(record.place, "encode", record.row) for one in outcomes if isinstance(one, Drop)]
        examples += found
        num_split += len(found) > 1 or bool(found and lost)
        if found:
            lost_parts += lost
        else:
            drops.append(lost[0])
    num_truncated = sum(example.num_cut > 0 for example in examples)
    return Encoded(examples, drops, num_truncated, num_split, tuple(lost_parts))


def encode(record: Record, tokenizer: Any, max_tokens: int, sequences: Sequences = USUAL) -> Example | Drop:
    """One record → token ids and labels, or why it cannot be; with sequences.longer=truncate its end may be cut."""
    from jinja2 import TemplateError

    if sequences.think == "strip":
        record = _stripped(record)
    try:
        text, spans = render(record, tokenizer, sequences)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        detail = f"the model's chat template refuses it: {error}"
        fix = "change the turns or roles as it says, or choose another base"
        return Drop("template_refused", detail, fix, record.messages[0].path)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, labels = encoded["input_ids"], _labels(encoded["input_ids"], encoded["offset_mapping"], spans)
    num_cut = max(0, len(ids) - max_tokens)
    if num_cut and sequences.longer != "truncate":
        return _too_long(record, len(ids), max_tokens, _SHORTEN)
    # The first token's label is never predicted: nothing stands before it.
    if not _is_learned(labels):
        return _nothing_to_learn(record, sequences)
    if not _is_learned(labels[:max_tokens]):
        fix = "raise schedule.max_tokens: what is learned stands behind the cut"
        return _too_long(record, len(ids), max_tokens, fix)
    return Example(record, tuple(ids[:max_tokens]), tuple(labels[:max_tokens]), num_cut)


def _stripped(record: Record) -> Record:
    messages = tuple(
        replace(message, content=thinking.strip(message.content)) if message.role == "assistant" else message
        for message in record.messages
    )
    return replace(record, messages=messages)


def _labels(ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """The ids of tokens that share a character with a span, IGNORED for the others."""
    return [
        token if any(start < last and first < end for first, last in spans) else IGNORED
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]


def _is_learned(labels: Sequence[int]) -> bool:
    return any(label != IGNORED for label in labels[1:])


def _too_long(record: Record, num_tokens: int, max_tokens: int, fix: str) -> Drop:
    detail = f"{num_tokens:,} tokens, {max_tokens:,} are allowed"
    return Drop("too_long", detail, fix=fix, path=record.messages[-1].path)


def _nothing_to_learn(record: Record, sequences: Sequences) -> Drop:
    if sequences.think == "keep":
        detail = "the model's chat template leaves nothing of the answer"
        fix = "look at the answer as the template shows it; it may hold only what the template removes"
    else:
        detail = f"without its thoughts (sequences.think={sequences.think}) nothing of the answer is left to learn"
        fix = "close the thought with </think> and answer behind it"
    return Drop("nothing_to_learn", detail, fix, record.messages[-1].path)


def _split(record: Record, tokenizer: Any, max_tokens: int, sequences: Sequences) -> list[Example | Drop]:
    """As few examples as hold the conversation, each of whole exchanges behind the system prompt."""
    system, exchanges = _exchanges(record.messages)
    outcomes: list[Example | Drop] = []
    taken: list[tuple[Message, ...]] = []

    def encoded(*some: tuple[Message, ...]) -> Example | Drop:
        messages = (*system, *chain.from_iterable(some))
        return encode(replace(record, messages=messages), tokenizer, max_tokens, sequences)

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
