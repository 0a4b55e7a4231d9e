"""A row as the data stage writes it: OpenAI's messages format, with where the row came from."""

from __future__ import annotations

import json
from typing import Any

import orjson

from dsr1_tune.data.record import Feedback, Message, Preference, Prompt, Record, Row, messages_of

_ANSWERS = ("chosen", "rejected", "completion", "ground_truth")

Turns = list[tuple[str, str]]
"""(role, text) of every turn."""


def as_output(row: Row) -> dict[str, Any]:
    """The row as a line of train.jsonl or eval.jsonl; every kind can be read again as what it was."""
    match row:
        case Record():
            said: dict[str, Any] = {"messages": _written(row.messages)}
        case Preference():
            said = {"messages": _written(row.prompt), "chosen": row.chosen.content, "rejected": row.rejected.content}
        case Feedback():
            said = {"messages": _written(row.prompt), "completion": row.completion.content, "label": row.is_good}
        case Prompt():
            said = {"messages": _written(row.messages)}
            if row.answer is not None:
                said["ground_truth"] = row.answer
    if row.tools:
        said["tools"] = row.tools
    said["source"] = {"file": row.place.file, "line": row.place.line, "index": row.place.index}
    return said


def _written(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def turns_of(output: dict[str, Any]) -> Turns:
    """All that is said in a written row; a preference's two answers count as the assistant's turns."""
    turns = [(message["role"], message["content"]) for message in output["messages"]]
    turns += [("assistant", output[name]) for name in _ANSWERS if name in output]
    return turns


def turns_of_row(row: Row) -> Turns:
    """The same of a row that is not written yet: `turns_of(as_output(row))`."""
    turns: Turns = [(message.role, message.content) for message in messages_of(row)]
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
