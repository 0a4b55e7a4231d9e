"""Calls of functions in any form: OpenAI's `tool_calls`, the older `function_call`, ShareGPT's turns, parts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dsr1_tune.data.call_text import calls_in, calls_in_tags, from_first_tag, is_call, value_of
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.read.calling.tools import Tools
from dsr1_tune.data.read.values import Unusable, is_null, is_sound, kind_of, short, sound_text
from dsr1_tune.data.record import ToolCall

IDS = ("id", "tool_call_id", "call_id", "tool_use_id")
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_BEGINS = ("{", "[", "```", "<tool", "<function")
_WRITE_CALL = 'write {"name": "the function", "arguments": {...}}'
_WRITE_TURN = f"{_WRITE_CALL}; or give the turn the role assistant (gpt) to keep it as text"
_WRITE_CALLS = 'write a list of calls: [{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
_WRITE_ARGUMENTS = 'write the arguments by name, as an object or the text of one: {"city": "Paris"}'


def calls_beside(turn: Mapping[str, Any], path: str, tools: Tools) -> list[ToolCall]:
    """OpenAI's `tool_calls`, or the one `function_call` of earlier years."""
    called, legacy = turn.get("tool_calls"), turn.get("function_call")
    if not _is_absent(called):
        at = f"{path}.tool_calls"
        said = _parsed(called, at, _WRITE_CALLS) if isinstance(called, str) else called
        listed = [said] if isinstance(said, dict) else said
        if not isinstance(listed, list):
            raise Unusable("bad_tool_call", f"{kind_of(said)}, not a list of calls", _WRITE_CALLS, at)
        found = [(number, call) for number, call in enumerate(listed) if not _is_absent(call)]
        if found:
            return [call_of(call, f"{at}[{number}]", tools) for number, call in found]
    return [] if _is_absent(legacy) else [call_of(legacy, f"{path}.function_call", tools)]


def _is_absent(value: Any) -> bool:
    """Whether no call is there: a table writes one that is absent as a struct or a list of nulls."""
    if isinstance(value, str):
        return value.strip().lower() in ("", "null", "none", "nan", "false", "0", "[]", "{}")
    return value in ({}, 0) or _is_null_throughout(value) or (isinstance(value, list) and all(map(_is_absent, value)))


def _is_null_throughout(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return is_null(value) or (bool(inside) and all(map(_is_null_throughout, inside)))


def calls_said(value: Any, path: str, tools: Tools) -> tuple[list[ToolCall], str, str]:
    """What a ShareGPT `function_call` turn says, the words around it, and the thought before it.

    That is one call or a list, as JSON or as its text. Raises Unusable where it is anything else.
    """
    words = thought = ""
    try:
        if isinstance(value, str):
            value, words, thought = _read(value, path)
            # What is written as text no table has filled up.
            calls = [call_of(call, at, None) for call, at in _listed(value, path)]
        else:
            calls = [call_of(call, at, tools) for call, at in _listed(value, path)]
    except Unusable as bad:
        drop = bad.drop
        raise Unusable(drop.code, drop.detail, drop.fix.replace(_WRITE_CALL, _WRITE_TURN), drop.path) from None
    if not calls:
        raise Unusable("bad_tool_call", f"{kind_of(value)}, which holds no call", _WRITE_TURN, path)
    return calls, words, thought


def _read(text: str, path: str) -> tuple[Any, str, str]:
    """The value of a text that is a call, the words around it and the thought before it."""
    # Where a text begins as a call, </think> stands in one of its arguments; and so it may behind other words.
    thought = None if text.lstrip().startswith(_BEGINS) else thinking.part(text)
    readings = [(thought.answer, thought.reasoning)] if thought else []
    if not text.lstrip().startswith(thinking.OPEN):
        readings.append((text, ""))
    fault = "a thought alone"
    for answer, reasoning in readings:
        try:
            said = calls_in(answer)
        except ValueError as error:
            fault = str(error)
        else:
            return said.value, said.words, reasoning
    raise Unusable("bad_tool_call", f"{short(text)} is no call: {fault}", _WRITE_CALL, path)


def _listed(value: Any, path: str) -> list[tuple[Any, str]]:
    if not isinstance(value, list):
        return [(value, path)]
    return [(call, f"{path}[{number}]") for number, call in enumerate(value)]


def calls_in_answer(text: str, path: str) -> tuple[list[ToolCall], str]:
    """The calls of an answer that is nothing but calls in tags, and the thought before them; else none, and its text.

    One JSON object in each pair of tags is what servers look for, and stays text.
    """
    if said := from_first_tag(text):
        try:
            found = calls_in_tags(said)
            if not found.words and not found.is_plain and all(map(is_call, found.value)):
                calls = [call_of(call, path, None) for call in found.value]
                return calls, text[: len(text) - len(said)]
        except (ValueError, Unusable):
            pass
    return [], text


def call_of(call: Any, path: str, tools: Tools | None, outer: Mapping[str, Any] | None = None) -> ToolCall:
    """One call; raises Unusable where it has no name, or arguments that are no object.

    Nulls that a table has put among its arguments are taken out, unless `tools` is None.
    """
    if isinstance(call, str):
        call = _parsed(call, path)
    if not isinstance(call, dict):
        raise Unusable("bad_tool_call", f"{kind_of(call)}, not a call", _WRITE_CALL, path)
    is_inner = isinstance(call.get("function"), dict)
    function: dict[str, Any] = call["function"] if is_inner else call
    at = f"{path}.function" if is_inner else path
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Unusable("bad_tool_call", "a call without the name of its function", _WRITE_CALL, at)
    key = next((key for key in _ARGUMENTS if not is_null(function.get(key))), "arguments")
    written = _arguments(function.get(key), f"{at}.{key}", name, tools)
    return ToolCall(sound_text(name.strip(), f"{at}.name"), written, named(call, *IDS) or named(outer or {}, *IDS))


def _arguments(value: Any, path: str, name: str, tools: Tools | None) -> str:
    """The JSON text of a call's arguments, given as an object or as text: null, blank and [] mean that it has none."""
    was_text = isinstance(value, str)
    for _ in range(2):
        if isinstance(value, str):
            value = _parsed(value, path, _WRITE_ARGUMENTS) if value.strip() else None
    arguments = {} if is_null(value) or value == [] or value == "" else value
    if not isinstance(arguments, dict):
        raise Unusable(
            "bad_tool_call", f"the arguments are {kind_of(arguments)}, not an object", _WRITE_ARGUMENTS, path
        )
    if tools and not was_text:
        arguments = tools.given(name.strip(), arguments)
    try:
        written = json.dumps(_plain(arguments), ensure_ascii=False, default=str, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise Unusable("bad_tool_call", f"the arguments are no JSON: {error}", _WRITE_ARGUMENTS, path) from None
    return sound_text(written, path)


def _plain(value: Any) -> Any:
    """The value with null where it holds NaN or an infinite number (1e999), which JSON has not."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parsed(text: str, path: str, fix: str = _WRITE_CALL) -> Any:
    try:
        return value_of(text)
    except ValueError as error:
        raise Unusable("bad_tool_call", f"{short(text)} is no JSON: {error}", fix, path) from None


def named(turn: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds a text or a number, or ""."""
    values = (turn.get(name) for name in names)
    said = (str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool))
    return next((text for text in said if text and is_sound(text)), "")
