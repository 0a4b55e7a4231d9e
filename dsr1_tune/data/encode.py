"""A record through the model's own chat template: token ids, and labels on what the assistant says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from dsr1_tune.data.record import Drop, Record

IGNORED = -100
"""The label of a token that is not learned; the loss skips it."""


@dataclass(frozen=True, slots=True)
class Example:
    """A record as the model sees it: `labels` are `input_ids` where the assistant speaks, else IGNORED."""

    record: Record
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


def encode_all(records: Iterable[Record], tokenizer: Any, max_tokens: int) -> tuple[list[Example], list[Drop]]:
    """Encode every record; those that the template refuses or that exceed `max_tokens` come back as Drops."""
    examples: list[Example] = []
    drops: list[Drop] = []
    for record in records:
        outcome = encode(record, tokenizer, max_tokens)
        if isinstance(outcome, Example):
            examples.append(outcome)
        else:
            drops.append(outcome.at(record.place, "encode", record.row))
    return examples, drops


def encode(record: Record, tokenizer: Any, max_tokens: int) -> Example | Drop:
    """One record → token ids and labels, or why it cannot be."""
    from jinja2 import TemplateError

    try:
        text, spans = render(record, tokenizer)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        return Drop(
            "template_refused",
            f"the model's chat template refuses it: {error}",
            fix="change the turns or roles as it says, or choose another base",
            path=record.messages[0].path,
        )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = [
        token if any(start < last and first < end for first, last in spans) else IGNORED
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]
    if len(ids) > max_tokens:
        return Drop(
            "too_long",
            f"{len(ids):,} tokens, {max_tokens:,} are allowed",
            fix="shorten it, or raise schedule.max_tokens",
            path=record.messages[-1].path,
        )
    if all(label == IGNORED for label in labels):
        return Drop(
            "nothing_to_learn",
            "the model's chat template leaves nothing of the answer",
            fix="look at the answer as the template shows it; it may hold only what the template removes",
            path=record.messages[-1].path,
        )
    return Example(record, tuple(ids), tuple(labels))


def render(record: Record, tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the character spans (first, end) of it that the assistant says.

    Each answer's span runs from behind the generation prompt to the end of its end-of-turn token, so that the model
    also learns to stop. Earlier answers that the template rewrites when the talk goes on (DeepSeek-R1 removes their
    thoughts) are left out. Raises what the template raises, such as jinja2.TemplateError.
    """

    def shown(count: int, prompt: bool = False) -> str:
        return _shown(record, count, prompt, tokenizer)

    def with_answer(position: int, content: str) -> str:
        answer = replace(record.messages[position], content=content)
        other = replace(record, messages=(*record.messages[:position], answer))
        return _shown(other, position + 1, False, tokenizer)

    whole = shown(len(record.messages))
    spans = []
    for position, message in enumerate(record.messages):
        if message.role != "assistant":
            continue
        through = whole if position == len(record.messages) - 1 else shown(position + 1)
        if position == 0 or not whole.startswith(through):
            continue
        if message.content.strip() not in through and through == with_answer(position, ""):
            continue  # an answer of thoughts alone, which the template removes
        # Where the prompt holds more than the finished turn (an opened <think>, say), learn from where they part.
        asked = shown(position, prompt=True)
        first = _common_prefix(asked, through)
        if first < len(asked):
            # The two may part late: "<think>" and an answer's "<table>" begin alike.
            first = min(first, _common_prefix(with_answer(position, "\ufffc"), through))
        end = first + len(through[first:].rstrip())
        if end > first:
            spans.append((first, end))
    return whole, spans


def prompt_text(record: Record, tokenizer: Any) -> str:
    """The conversation up to the last answer, as the model is asked for it."""
    return _shown(record, len(record.messages) - 1, True, tokenizer)


def _shown(record: Record, count: int, prompt: bool, tokenizer: Any) -> str:
    """The first `count` turns as the model's chat template shows them, with or without the generation prompt."""
    turns = [{"role": message.role, "content": message.content} for message in record.messages[:count]]
    tools = json.loads(record.tools) if record.tools else None
    text: str = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=prompt)
    return text


def _common_prefix(one: str, other: str) -> int:
    """The number of characters with which both begin."""
    if other.startswith(one):
        return len(one)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
