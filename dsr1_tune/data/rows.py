"""A raw row → Record, Preference or Prompt; or a Drop that names the exact place and the mend."""

from __future__ import annotations

import difflib
from itertools import pairwise
from numbers import Number
from typing import Any

import orjson

from dsr1_tune.data.formats import Names, Shape, shape_of
from dsr1_tune.data.json_rows import Raw
from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record, Role, Row

MAX_FIELD_CHARS = 1_000_000
# Beyond this a float has lost digits, or was never finite.
MAX_EXACT = 1e15

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "observation", "function", "function_response"), "tool"),
}
_FOLLOWS: dict[Role | None, tuple[Role, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
_EXAMPLE = 'write each row as {"input": "the question", "output": "the answer"}'


class Unusable(Exception):
    """Carries the Drop from the depth of a row to `interpret`."""

    def __init__(self, code: str, detail: str, fix: str, path: str = "$") -> None:
        super().__init__(code)
        self.drop = Drop(code, detail, fix, path)


def interpret(raw: Raw, names: Names, usual: Shape | None = None, prompts: bool = True) -> Row | Drop:
    """What the row says. `usual` is the shape of the file's other rows, to say what this one lacks; with `prompts` a
    row without an answer is a Prompt, else a mistake.
    """
    try:
        return _interpret(raw.value, raw.place, names, usual, prompts)
    except Unusable as bad:
        return bad.drop.at(raw.place, "read", raw.value)


def _interpret(value: Any, place: Place, names: Names, usual: Shape | None, prompts: bool) -> Row:
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"{_kind(value)}, not an object with named fields", _EXAMPLE)
    shape = _shape(value, names, usual, prompts)
    tools = _tools(value, shape)
    if shape.chosen:
        return _preference(value, shape, tools, place)
    messages = _conversation(value, shape)
    if shape.answer:
        messages += _spoken(value[shape.answer], "assistant", _path(shape.answer))
    _check_order(messages)
    if messages[-1].role == "assistant":
        return Record(messages, place, tools, value)
    if not prompts:
        fix = "add the answer, or remove the last turn"
        raise Unusable("no_assistant", f"it ends with the {messages[-1].role}'s turn", fix, messages[-1].path)
    result = _text(value[shape.result], _path(shape.result)) if shape.result else None
    return Prompt(messages, result, place, tools, value)


def _shape(row: dict[str, Any], names: Names, usual: Shape | None, prompts: bool) -> Shape:
    """The shape of the row's filled fields: tables made of several formats fill the others' columns with null."""
    filled = tuple(name for name, value in row.items() if not _is_null(value))
    shape = shape_of(filled, names)
    if len(filled) < len(row) and (isinstance(shape, Drop) or shape.is_prompt):
        whole = shape_of(tuple(row), names)
        if isinstance(whole, Shape) and not whole.is_prompt:
            # The right columns are there and hold null; whoever reads them will say which.
            return whole
    if isinstance(shape, Drop) or (shape.is_prompt and not prompts):
        _compare(row, usual)
        if isinstance(shape, Drop):
            raise Unusable(shape.code, shape.detail, shape.fix, shape.path)
        has = ", ".join(shape.question)
        raise Unusable("missing_field", f"has {has}, but no answer", "add the answer, or name it: --map answer=NAME")
    return shape


def _compare(row: dict[str, Any], usual: Shape | None) -> None:
    """Say what the row lacks, where the file's other rows show what was meant."""
    if usual is None:
        return
    needed = [*usual.question[:1], usual.turns, usual.answer, usual.chosen, usual.rejected]
    needed = [name for name in needed if name]
    lacking = [name for name in needed if name not in row]
    near = difflib.get_close_matches(lacking[0], [name for name in row if name not in needed], n=1) if lacking else []
    if lacking and (near or len(lacking) < len(needed)):
        fix = f"rename {near[0]!r} to {lacking[0]!r}" if near else f"add {lacking[0]!r}"
        detail = f"has no {lacking[0]!r}, which the other rows have"
        raise Unusable("missing_field", detail, fix, _path(lacking[0]))


def _conversation(row: dict[str, Any], shape: Shape) -> tuple[Message, ...]:
    """System prompt, history and question: all that comes before the answer, and of turns the answer too."""
    spoken = _turns(row[shape.turns], _path(shape.turns)) if shape.turns else _question(row, shape)
    messages = _history(row, shape) + spoken
    if not shape.system or _is_null(row[shape.system]):
        return messages
    system = Message("system", _text(row[shape.system], _path(shape.system)), _path(shape.system))
    if not system.content.strip() or system in messages:
        return messages
    if messages[0].role == "system":
        fix = "keep one of them"
        raise Unusable("turn_order", f"{shape.system!r} and the first turn are two system prompts", fix, system.path)
    return (system, *messages)


def _question(row: dict[str, Any], shape: Shape) -> tuple[Message, ...]:
    filled = [name for name in shape.question if not _is_null(row[name])]
    if not filled:
        raise Unusable("null_value", "is null", "write the question there", _path(shape.question[0]))
    if len(filled) == 1:
        return _spoken(row[filled[0]], "user", _path(filled[0]))
    parts = [_text(row[name], _path(name)) for name in filled]
    if shape.question[0].lower() == "title" and (parts[1].strip() == "无" or parts[0].strip() in parts[1]):
        # Forum data: the text under the headline says nothing ("none"), or says it all.
        parts = parts[:1] if parts[1].strip() == "无" else parts[1:]
    return (Message("user", "\n".join(part for part in parts if part.strip()), _path(filled[0])),)


def _history(row: dict[str, Any], shape: Shape) -> tuple[Message, ...]:
    """`[["question", "answer"], ...]`: what was said before."""
    if not shape.history or not row[shape.history] or _is_null(row[shape.history]):
        return ()
    path = _path(shape.history)
    pairs = _list(row[shape.history], path)
    messages: list[Message] = []
    for number, pair in enumerate(pairs):
        at = f"{path}[{number}]"
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable("wrong_type", f"{_kind(pair)}, not a pair", "write [question, answer]", at)
        messages.append(Message("user", _text(pair[0], f"{at}[0]"), f"{at}[0]"))
        messages.append(Message("assistant", _text(pair[1], f"{at}[1]"), f"{at}[1]"))
    return tuple(messages)


def _preference(row: dict[str, Any], shape: Shape, tools: str, place: Place) -> Preference:
    """A prompt with two answers; where no column holds the prompt, it is what both answers' conversations share."""
    chosen = _spoken(row[shape.chosen], "assistant", _path(shape.chosen))
    rejected = _spoken(row[shape.rejected], "assistant", _path(shape.rejected))
    prompt = _conversation(row, shape) if shape.turns or shape.question else chosen[:-1]
    if not prompt:
        raise Unusable("missing_field", "has chosen and rejected, but no prompt", "add the prompt", "$.prompt")
    if not (shape.turns or shape.question) and prompt != rejected[:-1]:
        fix = "both must answer the same conversation"
        raise Unusable("turn_order", "chosen and rejected answer different conversations", fix, rejected[0].path)
    for answer in (chosen[-1], rejected[-1]):
        if answer.role != "assistant":
            fix = "it must be the assistant's"
            raise Unusable("no_assistant", f"the {answer.role} says this answer", fix, answer.path)
        _check_order((*prompt, answer))
    return Preference(prompt, chosen[-1], rejected[-1], place, tools, row)


def _tools(row: dict[str, Any], shape: Shape) -> str:
    value = row[shape.tools] if shape.tools else None
    if _is_null(value) or value in ("", "[]", [], {}):
        return ""
    path = _path(shape.tools)
    return _sound(value, path) if isinstance(value, str) else _as_json(value, path)


def _spoken(value: Any, role: Role, path: str) -> tuple[Message, ...]:
    """Text said by `role`, or whole turns, or one turn."""
    if isinstance(value, dict) and _key(value, "role", "from"):
        return (_turn(value, path),)
    if isinstance(value, list) and value and isinstance(value[0], dict) and _key(value[0], "role", "from"):
        return _turns(value, path)
    return (Message(role, _text(value, path), path),)


def _turns(value: Any, path: str) -> tuple[Message, ...]:
    turns = _list(value, path)
    if not turns:
        raise Unusable("no_assistant", "the conversation has no turns", "add a question and its answer", path)
    return tuple(_turn(turn, f"{path}[{number}]") for number, turn in enumerate(turns))


def _turn(turn: Any, path: str) -> Message:
    """`{role, content}` or `{from, value}`."""
    if not isinstance(turn, dict):
        fix = 'write {"role": "user", "content": ...}'
        raise Unusable("wrong_type", f"{_kind(turn)}, not a turn", fix, path)
    role_key, text_key = _key(turn, "role", "from"), _key(turn, "content", "value", "text")
    if not role_key:
        listed = ", ".join(map(str, turn)) or "nothing"
        fix = 'write {"role": "user", "content": ...}, or from and value'
        raise Unusable("missing_field", f"a turn with {listed}, but no role", fix, path)
    said_by = turn[role_key]
    role = _ROLES.get(said_by.strip().lower()) if isinstance(said_by, str) else None
    if role is None:
        fix = "use system, user, assistant or tool (or human, gpt, function_call, observation)"
        raise Unusable("unknown_role", f"the role {_short(said_by)} is not known", fix, f"{path}.{role_key}")
    calls = turn.get("tool_calls")
    if calls and isinstance(calls, list) and not (text_key and turn[text_key]):
        return Message(role, _called(calls, f"{path}.tool_calls"), f"{path}.tool_calls")
    if not text_key:
        raise Unusable("missing_field", f"a turn of the {role} without content", "add its content", path)
    return Message(role, _text(turn[text_key], f"{path}.{text_key}"), f"{path}.{text_key}")


def _called(calls: list[Any], path: str) -> str:
    """OpenAI's tool calls as the JSON text that a ShareGPT `function_call` turn holds."""
    functions = [call.get("function", call) if isinstance(call, dict) else call for call in calls]
    return _as_json(functions[0] if len(functions) == 1 else functions, path)


def _as_json(value: Any, path: str) -> str:
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError as error:
        raise Unusable("bad_encoding", f"cannot be written as JSON: {error}", "mend the text there", path) from None


def _check_order(messages: tuple[Message, ...]) -> None:
    for before, message in pairwise((None, *messages)):
        previous = before.role if before else None
        if message is not None and message.role not in _FOLLOWS[previous]:
            where = f"follows the {previous}" if previous else "comes first"
            fix = "let a conversation begin with the user, and user and assistant take turns"
            raise Unusable("turn_order", f"the {message.role} {where}", fix, message.path)


def _text(value: Any, path: str) -> str:
    """The value as text; a number, a list of one text and a list of text parts are taken for what they mean."""
    if isinstance(value, str):
        return _sound(value, path)
    if _is_null(value):
        raise Unusable("null_value", "is null", "write the text, or remove the row", path)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        if isinstance(value, float) and abs(value) >= MAX_EXACT:
            raise Unusable("wrong_type", f"{value} is a number too large to be exact", "put it in quotes", path)
        return str(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return _sound(value[0], f"{path}[0]")
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        return "".join(_part(part, f"{path}[{number}]") for number, part in enumerate(value))
    raise Unusable("wrong_type", f"{_kind(value)} where text is needed", "write one text, in quotes", path)


def _part(part: dict[str, Any], path: str) -> str:
    """`{"type": "text", "text": ...}`, or `value` in place of the second `text`."""
    key = _key(part, "text", "value")
    if part["type"] != "text" or not key:
        raise Unusable("wrong_type", f"a part of type {_short(part['type'])}", "only text can be learned from", path)
    return _text(part[key], f"{path}.{key}")


def _sound(text: str, path: str) -> str:
    """The text itself, if it is one: no lone surrogates, no NUL, no megabytes."""
    if len(text) > MAX_FIELD_CHARS:
        detail = f"{len(text):,} characters in one field, more than {MAX_FIELD_CHARS:,}"
        raise Unusable("too_large", detail, "split it; was a whole file put into one field?", path)
    if "\0" in text:
        raise Unusable("bad_encoding", f"a NUL (character {text.index(chr(0)) + 1})", "remove it", path)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            odd = ord(text[error.start])
            # The reader turns a byte that does not decode into this range.
            is_byte = 0xDC80 <= odd <= 0xDCFF
            what = f"the byte 0x{odd - 0xDC00:02X}" if is_byte else f"half a character, U+{odd:04X},"
            fix = "save the file as UTF-8, or mend the text there"
            raise Unusable("bad_encoding", f"{what} is no text (character {error.start + 1})", fix, path) from None
    return text


def _list(value: Any, path: str) -> list[Any]:
    """A list, or the JSON text of one, as CSV files hold it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise Unusable("wrong_type", f"text that is not JSON: {error}", "write a JSON list", path) from None
    if _is_null(value):
        raise Unusable("null_value", "is null", "write the turns there, or remove the row", path)
    if not isinstance(value, list):
        raise Unusable("wrong_type", f"{_kind(value)} where a list is needed", "write a list", path)
    return value


def _key(row: dict[str, Any], *names: str) -> str:
    return next((name for name in names if name in row), "")


def _is_null(value: Any) -> bool:
    """None, or the NaN that tables put where nothing is."""
    return value is None or (isinstance(value, float) and value != value)


def _path(column: str) -> str:
    return f"$.{column}" if column.isidentifier() else f"$[{column!r}]"


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    words = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else f"{words.get(type(value), type(value).__name__)} ({_short(value)})"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RecursionError:
        text = "..."
    return text if len(text) <= 40 else text[:37] + "..."
