"""One turn of a conversation, in any of the field's forms: its words, thoughts, tool calls and results → messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dsr1_tune.data.encode import thinking
from dsr1_tune.data.read.values import Unusable, as_json, is_null, is_sound, key_of, kind_of, short, sound_text, text_of
from dsr1_tune.data.record import Message, Role, ToolCall

_CALLING = ("function_call", "tool_call", "tool_calls")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", *_CALLING), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
}
Required = Mapping[str, frozenset[str]]
"""The arguments that every call of a function must give, by its name: those that are null because somebody says so."""

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_CALL_PARTS = ("tool_call", "tool_use", "function_call", "function")
_RESULT_PARTS = ("tool_result", "tool_response", "function_call_output")
_ARGUMENTS = ("arguments", "parameters", "input", "args")
_IDS = ("id", "tool_call_id", "call_id", "tool_use_id")
# What authors write on a turn that is shown but not learned.
_EXCLUDED_BY_ZERO = ("weight", "loss", "loss_weight", "loss_mask", "train", "training", "trainable")
_NO = ("0", "0.0", "false", "no")
_TAGGED_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_WRITE_CALL = 'write {"name": "the function", "arguments": {...}}'


@dataclass
class _Parts:
    """What a turn's content holds, by kind, in order."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)


def read_turn(turn: dict[str, Any], path: str, required: Required) -> tuple[Message, ...]:
    """`{role, content}` or `{from, value}` with all that may stand beside: one message, or one for each result in it.

    Raises Unusable where the role is not known or nothing is said.
    """
    role_key, text_key = key_of(turn, "role", "from"), key_of(turn, "content", "value", "text")
    said_by = turn[role_key]
    word = said_by.strip().lower() if isinstance(said_by, str) else ""
    role = ROLES.get(word)
    if role is None:
        fix = "use system, user, assistant or tool (or human, gpt, function_call, observation)"
        raise Unusable("unknown_role", f"the role {short(said_by)} is not known", fix, f"{path}.{role_key}")
    value: Any = turn.get(text_key)
    where = f"{path}.{text_key}"
    parts = _Parts()
    if role == "assistant":
        parts.calls += _calls_beside(turn, path, required)
        if word in _CALLING and (called := _calls_in_text(value, where, required)):
            parts.calls += called
            value = None
    if value == [] and parts.calls:
        value = None
    if _is_typed(value):
        for number, part in enumerate(value):
            _take(part, f"{where}[{number}]", parts, required)
    elif role == "tool" and isinstance(value, (dict, list)) and not _is_one_text(value):
        parts.texts.append(as_json(without_nulls(value), where))
    elif not text_key and not parts.calls:
        raise Unusable("missing_field", f"a turn of the {role} without content", "add its content", path)
    elif not (is_null(value) and parts.calls):
        parts.texts.append(text_of(value, where))
    messages = _messages(turn, role, parts, where if text_key and not is_null(value) else path)
    return messages if is_learned(turn) else tuple(replace(message, is_learned=False) for message in messages)


def _messages(turn: dict[str, Any], role: Role, parts: _Parts, path: str) -> tuple[Message, ...]:
    content = "".join(parts.texts)
    if role == "assistant":
        content = _with_thought(turn, content, parts)
        return (Message(role, content, path, calls=tuple(parts.calls)),)
    if parts.results:
        said = (Message("user", content, path),) if content.strip() and role == "user" else ()
        return (*parts.results, *said)
    if role != "tool":
        return (Message(role, content, path),)
    return (Message(role, content, path, name=_named(turn, "name"), call_id=_named(turn, *_IDS[1:])),)


def _with_thought(turn: dict[str, Any], content: str, parts: _Parts) -> str:
    """An answer whose thought stands in a field or a part of its own, as servers give it, in one text."""
    thoughts = [thought for thought in parts.thoughts if thought.strip()]
    beside = next((turn[name] for name in _THOUGHTS if isinstance(turn.get(name), str) and turn[name].strip()), "")
    if not thoughts and beside and is_sound(beside):
        thoughts = [beside]
    if not thoughts or thinking.CLOSE in content:
        return content
    thought = "\n\n".join(text.strip() for text in thoughts)
    return f"{thinking.OPEN}\n{thought}\n{thinking.CLOSE}\n\n{content}"


def is_learned(turn: Mapping[str, Any]) -> bool:
    """Whether the author lets the turn be learned: not `weight: 0`, `loss: false`, `train: false`, `masked: true`."""
    if any(_says(turn.get(name), _NO) for name in _EXCLUDED_BY_ZERO):
        return False
    return "masked" not in turn or turn["masked"] is None or _says(turn["masked"], _NO)


def _says(value: Any, words: tuple[str, ...]) -> bool:
    return value is not None and not isinstance(value, (dict, list)) and str(value).strip().lower() in words


def together(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages, with calls in turns of their own (ShareGPT's `function_call`) joined to the words before them."""
    found: list[Message] = []
    for message in messages:
        last = found[-1] if found else None
        if last and message.calls and last.role == "assistant" and not message.content.strip():
            calls = (*last.calls, *message.calls)
            found[-1] = replace(last, calls=calls, is_learned=last.is_learned and message.is_learned)
        else:
            found.append(message)
    return tuple(found)


# --- typed parts -----------------------------------------------------------------------------------------------------


def _is_typed(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "type" in part for part in value)


def _is_one_text(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def _take(part: dict[str, Any], path: str, parts: _Parts, required: Required) -> None:
    """Put a part where it belongs: `{"type": "text" | "thinking" | "tool_call" | "tool_use" | "tool_result", ...}`."""
    kind = part["type"]
    if kind in _TEXT_PARTS:
        key = key_of(part, "text", "value", "content")
        parts.texts.append(text_of(part.get(key), f"{path}.{key or 'text'}"))
    elif kind in _THOUGHTS or kind == "redacted_thinking":
        key = next((name for name in (*_THOUGHTS, "text", "content", "summary") if part.get(name)), "")
        for thought in part[key] if key and isinstance(part[key], list) else [part[key]] if key else []:
            # A summary is a list of texts; a blank or an encrypted thought is none.
            text = thought.get("text", "") if isinstance(thought, dict) else thought
            parts.thoughts.append(text_of(text, f"{path}.{key}"))
    elif kind in _CALL_PARTS:
        parts.calls.append(_call(part.get(kind) or part, path, required, part))
    elif kind in _RESULT_PARTS:
        parts.results.append(_result(part, path))
    else:
        fix = "only text, thoughts, tool calls and their results can be learned from"
        raise Unusable("wrong_type", f"a part of type {short(kind)}", fix, path)


def _result(part: dict[str, Any], path: str) -> Message:
    key = key_of(part, "content", "output", "result", "text")
    value = part.get(key)
    if is_null(value):
        content = ""
    elif isinstance(value, str) or _is_typed(value) or _is_one_text(value):
        content = text_of(value, f"{path}.{key}")
    else:
        content = as_json(without_nulls(value), f"{path}.{key}")
    return Message("tool", content, f"{path}.{key}", name=_named(part, "name"), call_id=_named(part, *_IDS[1:]))


# --- tool calls ------------------------------------------------------------------------------------------------------


def _calls_beside(turn: dict[str, Any], path: str, required: Required) -> list[ToolCall]:
    """OpenAI's `tool_calls`, or the one `function_call` of earlier years."""
    calls, legacy = (_filled(turn.get(name)) for name in ("tool_calls", "function_call"))
    if isinstance(calls, str) and calls.strip():
        calls = _parsed(calls, f"{path}.tool_calls")
    if isinstance(calls, dict):
        calls = [calls]
    if calls and isinstance(calls, list):
        return [_call(call, f"{path}.tool_calls[{number}]", required) for number, call in enumerate(calls)]
    return [_call(legacy, f"{path}.function_call", required)] if legacy else []


def _filled(value: Any) -> Any:
    """What is not null: a table writes an absent call as a struct or a list of nulls."""
    if isinstance(value, list):
        return [one for one in value if _filled(one)]
    if isinstance(value, dict):
        return value if any(map(_filled, value.values())) else None
    return value


def _calls_in_text(value: Any, path: str, required: Required) -> list[ToolCall]:
    """What a ShareGPT `function_call` turn says: one call or a list, as JSON or as its text; [] for any other text."""
    text = ""
    if isinstance(value, str):
        text = value.strip()
        tagged = _TAGGED_CALL.findall(text)
        try:
            value = list(map(json.loads, tagged)) if tagged else json.loads(text)
        except ValueError:
            return []
    calls = value if isinstance(value, list) else [value]
    if not calls or not all(isinstance(call, dict) and ("name" in call or "function" in call) for call in calls):
        return []
    # What is written as text no table has filled up.
    return [_call(call, path, None if text else required) for call in calls]


def _call(call: Any, path: str, required: Required | None, outer: Any = None) -> ToolCall:
    """One call; raises Unusable where it has no name, or arguments that are no object.

    The nulls that a table (Arrow, Parquet) puts where another call has an argument are taken out, unless `required` is
    None.
    """
    if isinstance(call, str):
        call = _parsed(call, path)
    if not isinstance(call, dict):
        raise Unusable("bad_tool_call", f"{kind_of(call)}, not a call", _WRITE_CALL, path)
    function: dict[str, Any] = call["function"] if isinstance(call.get("function"), dict) else call
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Unusable("bad_tool_call", "a call without the name of its function", _WRITE_CALL, path)
    key = next((key for key in _ARGUMENTS if not is_null(function.get(key))), "arguments")
    value, at = function.get(key), f"{path}.{key}"
    if isinstance(value, dict):
        arguments: Any = value if required is None else _given(value, required.get(name, frozenset()))
    else:
        arguments = _parsed(value, at) if isinstance(value, str) and value.strip() else value or {}
        arguments = _parsed(arguments, at) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict):
        detail = f"the arguments are {kind_of(arguments)}, not an object"
        raise Unusable("bad_tool_call", detail, 'write them by name: {"city": "Paris"}', at)
    written = sound_text(json.dumps(arguments, ensure_ascii=False, default=str), at)
    return ToolCall(sound_text(name.strip(), path), written, _named(call, *_IDS) or _named(outer or {}, *_IDS))


def _parsed(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        fix = "write the arguments as an object, or as the text of one"
        raise Unusable("bad_tool_call", f"{short(text)} is no JSON: {error}", fix, path) from None


def _given(arguments: dict[str, Any], required: frozenset[str]) -> dict[str, Any]:
    return {name: without_nulls(value) for name, value in arguments.items() if not is_null(value) or name in required}


def without_nulls(value: Any) -> Any:
    """The value without an object's null fields, at any depth; a list's nulls stay."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if not is_null(one)}
    return [without_nulls(one) for one in value] if isinstance(value, (list, tuple)) else value


def required_arguments(tools: str) -> Required:
    """What the functions' schemas require, by name; nothing of tools that are no list of functions."""
    try:
        functions = json.loads(tools) if tools else []
    except ValueError:
        return {}
    found = {}
    for tool in functions if isinstance(functions, list) else ():
        function: Any = tool.get("function", tool) if isinstance(tool, dict) else None
        parameters: Any = function.get("parameters") if isinstance(function, dict) else None
        if isinstance(parameters, dict) and isinstance(parameters.get("required"), list):
            found[str(function.get("name"))] = frozenset(map(str, parameters["required"]))
    return found


def _named(turn: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that holds a text or a number, or ""."""
    values = (turn.get(name) for name in names)
    said = (str(value) for value in values if isinstance(value, (str, int)) and not isinstance(value, bool))
    return next((text for text in said if text and is_sound(text)), "")
