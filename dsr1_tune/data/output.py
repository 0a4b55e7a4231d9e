"""A row as the data stage writes it: OpenAI's messages format, with where the row came from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson

from dsr1_tune.data.record import Feedback, Message, Preference, Prompt, Record, Row, messages_of, said

_ANSWERS = ("chosen", "rejected", "completion", "ground_truth")

Turns = list[tuple[str, str]]
"""(role, text) of every turn."""


def as_output(row: Row) -> dict[str, Any]:
    """The row as a line of train.jsonl or eval.jsonl; every kind can be read again as what it was."""
    match row:
        case Record():
            written: dict[str, Any] = {"messages": _written(row.messages)}
        case Preference():
            written = {
                "messages": _written(row.prompt),
                "chosen": _answer(row.chosen),
                "rejected": _answer(row.rejected),
            }
        case Feedback():
            written = {"messages": _written(row.prompt), "completion": _answer(row.completion), "label": row.is_good}
        case Prompt():
            written = {"messages": _written(row.messages)}
            if row.answer is not None:
                written["ground_truth"] = row.answer
    if row.tools:
        written["tools"] = row.tools
    written["source"] = {"file": row.place.file, "line": row.place.line, "index": row.place.index}
    return written


def _written(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [_turn(message) for message in messages]


def _turn(message: Message) -> dict[str, Any]:
    """A turn in OpenAI's form. Arguments are JSON text, as there: tables of objects would give all calls all fields."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.call_id:
        turn["tool_call_id"] = message.call_id
    if message.calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            | ({"id": call.id} if call.id else {})
            for call in message.calls
        ]
    if not message.is_learned:
        turn["weight"] = 0
    return turn


def _answer(message: Message) -> str | list[dict[str, Any]]:
    """An answer beside its prompt: a text, or a turn where it is more than that."""
    turn = _turn(message)
    return message.content if len(turn) == 2 else [turn]


def turns_of(output: dict[str, Any]) -> Turns:
    """All that is said in a written row; a preference's two answers count as the assistant's turns."""
    turns = [(message["role"], _said(message)) for message in output["messages"]]
    for name in _ANSWERS:
        if name in output:
            answer = output[name]
            turns.append(("assistant", answer if isinstance(answer, str) else _said(answer[0])))
    return turns


def _said(turn: dict[str, Any]) -> str:
    """`Message.said` of a written turn."""
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    return said(turn["content"], [(call["name"], call["arguments"]) for call in calls])


def turns_of_row(row: Row) -> Turns:
    """The same of a row that is not written yet: `turns_of(as_output(row))`."""
    turns: Turns = [(message.role, message.said) for message in messages_of(row)]
    if isinstance(row, Prompt) and row.answer is not None:
        turns.append(("assistant", row.answer))
    return turns


def question_of(output: dict[str, Any]) -> str:
    """All that is said before the answer."""
    return "\n".join(text for _, text in _split(output)[0])


def answer_of(output: dict[str, Any]) -> str:
    """The final answer; a preference's better one."""
    return "\n".join(text for _, text in _split(output)[1][:1])


def _split(output: dict[str, Any]) -> tuple[Turns, Turns]:
    turns = turns_of(output)
    num_before = len(output["messages"])
    if num_before == len(turns) and turns[-1][0] == "assistant":
        num_before -= 1
    return turns[:num_before], turns[num_before:]


def dumps(value: Any) -> bytes:
    """JSON in one line, whatever the row holds."""
    try:
        return orjson.dumps(value, default=str)
    except orjson.JSONEncodeError:
        # Lone surrogates, numbers beyond 64 bits, deep nesting; the standard library writes what it has read.
        return json.dumps(value, default=str).encode()
