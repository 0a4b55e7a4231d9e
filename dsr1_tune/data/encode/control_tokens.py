"""Control tokens that a text holds stay text: hidden from the template, tokenised apart; none of them ends a turn."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsr1_tune.data.record import Message, Record

_PRIVATE = range(0xE000, 0xF8FF)
Span = tuple[int, int]
"""First character, and the one behind the last."""


@dataclass(frozen=True)
class Hidden:
    """A record in whose texts a run of one private character, as long, stands for each control token.

    `stand_ins` says for which; there are none for most records.
    """

    record: Record
    stand_ins: dict[str, str]

    def shown(self, text: str) -> tuple[str, list[Span]]:
        """The text with the tokens again, and where they stand."""
        if not self.stand_ins:
            return text, []
        runs = {character * len(token): token for character, token in self.stand_ins.items()}
        places: list[Span] = []

        def back(match: re.Match[str]) -> str:
            places.append(match.span())
            return runs[match[0]]

        return re.sub("|".join(runs), back, text), places


def hide(record: Record, pattern: re.Pattern[str]) -> Hidden:
    """The record with the tokens of the pattern hidden, in words, calls and tools alike."""
    texts = list(_texts(record))
    found = list(dict.fromkeys(token for text in texts for token in pattern.findall(text)))
    if not found:
        return Hidden(record, {})
    whole = "".join(texts)
    free = (chr(code) for code in _PRIVATE if chr(code) not in whole)
    stand_ins = dict(zip(free, found, strict=False))
    runs = {token: character * len(token) for character, token in stand_ins.items()}

    def without(text: str) -> str:
        return pattern.sub(lambda match: runs.get(match[0], match[0]), text)

    messages = tuple(_changed(message, without) for message in record.messages)
    return Hidden(replace(record, messages=messages, tools=without(_spelled_out(record.tools))), stand_ins)


def _spelled_out(tools: str) -> str:
    """JSON without escapes such as \\u003c, behind which a token could stand."""
    if "\\u" not in tools:
        return tools
    try:
        return json.dumps(json.loads(tools), ensure_ascii=False)
    except ValueError:
        return tools


def _texts(record: Record) -> Iterable[str]:
    yield _spelled_out(record.tools)
    for message in record.messages:
        yield message.content
        yield message.name
        for call in message.calls:
            yield call.name
            yield call.arguments


def _changed(message: Message, without: Callable[[str], str]) -> Message:
    calls = tuple(replace(call, name=without(call.name), arguments=without(call.arguments)) for call in message.calls)
    return replace(message, content=without(message.content), name=without(message.name), calls=calls)


def tokenise(text: str, as_text: Sequence[Span], tokenizer: Any) -> tuple[list[int], list[Span]]:
    """Token ids and the characters (first, end) of each; at `as_text` stand control tokens that are text."""
    ids: list[int] = []
    offsets: list[Span] = []
    for (first, end), is_text in pieces(text, as_text):
        if is_text:
            found = _without_added_tokens(text[first:end], tokenizer)
            offsets += [(first, end)] * len(found)
        else:
            found, places = _piece(text[first:end], first > 0, tokenizer)
            offsets += [(first + one, first + other) for one, other in places]
        ids += found
    return ids, offsets


def pieces(text: str, as_text: Sequence[Span]) -> Iterator[tuple[Span, bool]]:
    """The text cut at the control tokens in it that are text: where each piece is, and whether it is one of them."""
    at = 0
    for first, end in [*as_text, (len(text), len(text))]:
        if at < first:
            yield (at, first), False
        if first < end:
            yield (first, end), True
        at = end


def _piece(text: str, is_within: bool, tokenizer: Any) -> tuple[list[int], list[Span]]:
    """A piece by itself; one from within a text behind a line break, as SentencePiece puts a blank before a text."""
    if is_within:
        broken = len(tokenizer("\n", add_special_tokens=False)["input_ids"])
        behind = tokenizer("\n" + text, add_special_tokens=False, return_offsets_mapping=True)
        places = behind["offset_mapping"][broken:]
        if places and places[0][0] == 1:
            return behind["input_ids"][broken:], [(first - 1, end - 1) for first, end in places]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    return encoded["input_ids"], encoded.get("offset_mapping", [])


def _without_added_tokens(text: str, tokenizer: Any) -> list[int]:
    """The text by the tokenizer's own steps alone; as transformers' `sanitize_control_tokens` does."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
