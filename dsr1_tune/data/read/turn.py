"""One turn of a conversation, in any of the field's forms: its words, thoughts, tool calls and results → messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dsr1_tune.data.encode import thinking
from dsr1_tune.data.read.calling.calls import IDS, call_of, calls_beside, calls_in_answer, calls_said, named
from dsr1_tune.data.read.calling.tools import Tools
from dsr1_tune.data.read.values import Unusable, as_json, is_null, is_sound, key_of, kind_of, short, text_of
from dsr1_tune.data.record import Message, Role, ToolCall

_CALLING = ("function_call", "tool_call", "tool_calls")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", *_CALLING), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
}
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS = ("text", "input_text", "output_text")
_CALL_PARTS = ("tool_call", "tool_use", "function_call", "function")
_RESULT_PARTS = ("tool_result", "tool_response", "function_call_output")
# What authors write on a turn that is shown but not learned: with no, or, of the last, with yes.
_MASKS = ("weight", "loss", "loss_weight", "loss_mask", "train", "training", "trainable", "masked")
_WEIGHTS = ("weight", "loss_weight")
_ANSWERS = {**dict.fromkeys(("0", "0.0", "false", "no"), False), **dict.fromkeys(("1", "1.0", "true", "yes"), True)}


@dataclass
class _Parts:
    """What a turn's content holds, by kind, in order."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)


def read_turn(turn: dict[str, Any], path: str, tools: Tools) -> tuple[Message, ...]:
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
    is_shown_only = not is_learned(turn, path, role)
    may_be_text = is_shown_only or tools.is_worse
    parts = _Parts()
    if role == "assistant":
        parts.calls += calls_beside(turn, path, tools)
    if value == [] and parts.calls:
        value = None
    if _is_typed(value):
        for number, part in enumerate(value):
            _take(part, f"{where}[{number}]", parts, tools)
    elif role == "tool" and isinstance(value, (dict, list)) and not _is_one_text(value):
        parts.texts.append(as_json(tools.result(value), where))
    elif word in _CALLING and isinstance(value, (dict, list)) and not _is_one_text(value):
        _take_call(value, parts, where, tools, may_be_text)
    elif not text_key and not parts.calls:
        raise Unusable("missing_field", f"a turn of the {role} without content", "add its content", path)
    elif not (is_null(value) and parts.calls):
        parts.texts.append(text_of(value, where))
    text = "".join(parts.texts)
    if role == "assistant" and not parts.calls:
        if word not in _CALLING:
            parts.calls, words = calls_in_answer(text, where)
            parts.texts = [words]
        elif text.strip():
            parts.texts = []
            _take_call(text, parts, where, tools, may_be_text)
    messages = _messages(turn, role, parts, where if text_key and not is_null(value) else path)
    return tuple(replace(message, is_learned=False) for message in messages) if is_shown_only else messages


def _take_call(value: Any, parts: _Parts, path: str, tools: Tools, may_be_text: bool) -> None:
    """Put what a turn says that should be a call where it belongs; what cannot be read, if it may, to the texts."""
    try:
        calls, words, thought = calls_said(value, path, tools)
    except Unusable:
        if not may_be_text:
            raise
        parts.texts.append(value if isinstance(value, str) else as_json(value, path))
        return
    parts.calls += calls
    parts.texts.append(words)
    parts.thoughts += [thought] if thought else []


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
    return (Message(role, content, path, name=named(turn, "name"), call_id=named(turn, *IDS[1:])),)


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


def is_learned(turn: Mapping[str, Any], path: str, role: Role = "assistant") -> bool:
    """Whether the author lets the turn be learned: not `weight: 0`, `loss: false`, `train: false`, `masked: true`.

    Raises Unusable where an answer has a weight between 0 and 1: a token is learned or not.
    """
    allowed = [_allows(name, turn[name], f"{path}.{name}", role) for name in _MASKS if name in turn]
    return all(allowed)


def _allows(name: str, value: Any, path: str, role: Role) -> bool:
    """What one of the masks says; what is none, such as a loss that was measured, says nothing."""
    if not isinstance(value, (bool, int, float, str)):
        return True
    said = _ANSWERS.get(str(value).strip().lower())
    if said is not None:
        return said != (name == "masked")
    weight = _number(value) if name in _WEIGHTS else 1.0
    if role == "assistant" and 0 < weight < 1:
        raise Unusable(
            "wrong_type", f"{kind_of(value)}, neither 0 nor 1", "write 1 to learn the turn, 0 to show it only", path
        )
    return weight > 0


def _number(value: float | str) -> float:
    """The weight that this says; 1 where it says none."""
    try:
        weight = float(value)
    except (ValueError, OverflowError):
        return 1.0
    return 1.0 if is_null(weight) else weight


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


def _take(part: dict[str, Any], path: str, parts: _Parts, tools: Tools) -> None:
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
        inner = part.get(kind)
        parts.calls.append(call_of(inner or part, f"{path}.{kind}" if inner else path, tools, part))
    elif kind in _RESULT_PARTS:
        parts.results.append(_result(part, path, tools))
    else:
        fix = "only text, thoughts, tool calls and their results can be learned from"
        raise Unusable("wrong_type", f"a part of type {short(kind)}", fix, path)


def _result(part: dict[str, Any], path: str, tools: Tools) -> Message:
    key = key_of(part, "content", "output", "result", "text")
    value = part.get(key)
    if is_null(value):
        content = ""
    elif isinstance(value, str) or _is_typed(value) or _is_one_text(value):
        content = text_of(value, f"{path}.{key}")
    else:
        content = as_json(tools.result(value), f"{path}.{key}")
    return Message("tool", content, f"{path}.{key}", name=named(part, "name"), call_id=named(part, *IDS[1:]))
