"""A raw row → Record, Preference or Prompt; or a Drop that names the exact place and the mend."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Number
from types import NoneType
from typing import Any

import orjson

from dsr1_tune.data import thoughts
from dsr1_tune.data.formats import Names, Shape, listed, shape_of
from dsr1_tune.data.json_rows import Raw
from dsr1_tune.data.record import Drop, Message, Place, Preference, Prompt, Record, Role, Row
from dsr1_tune.data.tagged import Dialogue, begins_tagged, tell_apart

MAX_FIELD_CHARS = 1_000_000
# Beyond this a float has lost digits, or was never finite.
MAX_EXACT = 1e15
MAX_PLANS = 4096
TAGGED_TEXT = "tagged text"

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
    """Carries the Drop from the depth of a row to the Interpreter."""

    def __init__(self, code: str, detail: str, fix: str, path: str = "$") -> None:
        super().__init__(code)
        self.drop = Drop(code, detail, fix, path)


@dataclass(frozen=True, slots=True)
class Learned:
    """What the first rows of a file taught about all of them.

    `usual` is the shape that most rows have, to say what another one lacks; with `prompts` a row without an answer is
    a Prompt, else a mistake; `format` is the most frequent format's name.
    """

    names: Names = ()
    usual: Shape | None = None
    prompts: bool = True
    format: str = ""


class Interpreter:
    """Says what each row of a file means; counts the rows by format, and notes the names of their fields."""

    def __init__(self, learned: Learned) -> None:
        self.formats: Counter[str] = Counter()
        self.columns: set[str] = set()
        self._learned = learned
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def __call__(self, raw: Raw) -> Row | Drop:
        """The row; or a Drop that says what is wrong with it."""
        row, place = raw
        try:
            if not isinstance(row, dict):
                raise Unusable("not_an_object", f"{_kind(row)}, not an object with named fields", _EXAMPLE)
            # Rows with the same fields of the same types are alike: what is found out for one holds for all.
            like = (*row, *map(type, row.values()))
            plan = self._plans.get(like) or self._plan(like, row)
            if plan.texts and (record := _plain_record(row, plan, place)):
                self.formats[plan.shape.name] += 1
                return record
            self.formats[_format(row, plan.shape)] += 1
            return _carefully(row, plan.shape, place, self._learned.prompts)
        except Unusable as bad:
            return bad.drop.at(place, "read", row)

    def _plan(self, like: tuple[Any, ...], row: dict[str, Any]) -> _Plan:
        self.columns.update(row)
        shape = _shape(row, self._learned)
        plan = _Plan.of(shape, row)
        # A float may be null (NaN), and a tagged text is recognised by what it says: those are looked at one by one.
        if float not in like and shape.name != TAGGED_TEXT:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[like] = plan
        return plan


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows with certain fields of certain types are read.

    `texts` names the fields of a plain question and answer, the answer's last, if that is all there is to such rows;
    `blank` those that must be empty for it.
    """

    shape: Shape
    texts: tuple[str, ...] = ()
    blank: tuple[str, ...] = ()
    paths: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, shape: Shape, row: dict[str, Any]) -> _Plan:
        texts = (*shape.question, shape.answer)
        is_forum = len(texts) > 2 and texts[0].lower() == "title"
        is_plain = not (shape.turns or shape.chosen or is_forum) and bool(shape.question and shape.answer)
        blank = tuple(name for name in (shape.system, shape.history, shape.tools) if name)
        # An empty list is no history and no tools, but a mistake for a system prompt.
        may_be_blank = all(isinstance(row[name], (str, list, NoneType)) for name in blank) and not (
            shape.system and isinstance(row[shape.system], list)
        )
        if not is_plain or not may_be_blank or any(type(row[name]) is not str for name in texts):
            return cls(shape)
        return cls(shape, texts, blank, (_path(texts[0]), _path(shape.answer)))


def _plain_record(row: dict[str, Any], plan: _Plan, place: Place) -> Record | None:
    """The record, if nothing about the row needs care; what `_carefully` makes of it, in a third of the time."""
    texts = [row[name] for name in plan.texts]
    answer = texts.pop()
    question = asked = "\n".join(texts)
    if len(texts) > 1 and not all(map(str.strip, texts)):
        question = "\n".join([text for text in texts if text.strip()])
    needs_care = (
        begins_tagged(question)
        or not (_is_sound(asked) and _is_sound(answer))
        or (plan.blank and any(row[name] for name in plan.blank))
    )
    if needs_care:
        return None
    path, answer_path = plan.paths
    return Record((Message("user", question, path), Message("assistant", answer, answer_path)), place, "", row)


def _carefully(row: dict[str, Any], shape: Shape, place: Place, prompts: bool) -> Row:
    """The row of any shape; raises Unusable."""
    tools = _tools(row, shape)
    if shape.chosen:
        return _preference(row, shape, tools, place)
    notes: list[Drop] = []
    messages = _conversation(row, shape, notes)
    _check_order(messages)
    if messages[-1].role == "assistant":
        return Record(messages, place, tools, row, _at(notes, place, row))
    if not prompts:
        fix = "add the answer, or remove the last turn"
        raise Unusable("no_assistant", f"it ends with the {messages[-1].role}'s turn", fix, messages[-1].path)
    result = _text(row[shape.result], _path(shape.result)) if shape.result else None
    return Prompt(messages, result, place, tools, row, _at(notes, place, row))


def _at(notes: list[Drop], place: Place, row: dict[str, Any]) -> tuple[Drop, ...]:
    return tuple(note.at(place, "read", row) for note in notes)


def _format(row: dict[str, Any], shape: Shape) -> str:
    """The shape's name, but for turns in pairs, which only their content tells from ShareGPT's."""
    turns = row[shape.turns] if shape.turns and not shape.chosen else None
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and _pair_shape(turns[0]):
        return "pairs"
    return shape.name


def _shape(row: dict[str, Any], learned: Learned) -> Shape:
    """The shape of the row's filled fields: tables made of several formats fill the others' columns with null."""
    names, prompts = learned.names, learned.prompts
    filled = tuple(name for name, value in row.items() if not _is_null(value))
    shape = shape_of(filled, names)
    if len(filled) < len(row) and (isinstance(shape, Drop) or shape.is_prompt):
        whole = shape_of(tuple(row), names)
        if isinstance(whole, Shape) and not whole.is_prompt:
            # The right columns are there and hold null; whoever reads them will say which.
            return whole
    if isinstance(shape, Drop) or (shape.is_prompt and not prompts):
        if isinstance(row.get("text"), str) and isinstance(tell_apart(row["text"], has_answer=False), Dialogue):
            return Shape(TAGGED_TEXT, turns="text")
        _compare(row, learned.usual)
        if isinstance(shape, Drop):
            raise Unusable(shape.code, shape.detail, shape.fix, shape.path)
        fix = "add the answer, or name it: --map answer=NAME"
        raise Unusable("missing_field", f"has {listed(shape.question)}, but no answer", fix)
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


def _conversation(row: dict[str, Any], shape: Shape, notes: list[Drop]) -> tuple[Message, ...]:
    """All that is said: system prompt, history, question and answer, or the turns; remarks are added to `notes`."""
    spoken = _told(row[shape.turns], _path(shape.turns), notes) if shape.turns else _asked(row, shape, notes)
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


def _told(value: Any, path: str, notes: list[Drop]) -> tuple[Message, ...]:
    """A list of turns, or one text in which tags tell them apart."""
    if not isinstance(value, str) or not begins_tagged(value):
        return _turns(value, path)
    dialogue = tell_apart(_sound(value, path), has_answer=False)
    if isinstance(dialogue, Drop):
        raise Unusable("wrong_type", dialogue.detail, dialogue.fix, path)
    if dialogue is None:
        return _turns(value, path)
    notes.append(replace(dialogue.note, path=path))
    return _as_messages(dialogue, path)


def _as_messages(dialogue: Dialogue, path: str) -> tuple[Message, ...]:
    return tuple(Message(role, text, path) for role, text in dialogue.turns)


def _asked(row: dict[str, Any], shape: Shape, notes: list[Drop]) -> tuple[Message, ...]:
    """The question with its answer, if there is one; a question with tags in it may be several turns."""
    question = _question(row, shape)
    answer = _spoken(row[shape.answer], "assistant", _path(shape.answer)) if shape.answer else ()
    if len(question) > 1 or question[0].role != "user":
        return question + answer
    (asked,) = question
    dialogue = tell_apart(asked.content, has_answer=True)
    if isinstance(dialogue, Drop):
        notes.append(replace(dialogue, path=asked.path))
    if not isinstance(dialogue, Dialogue):
        return question + answer
    notes.append(replace(dialogue.note, path=asked.path))
    turns = _as_messages(dialogue, asked.path)
    return turns + tuple(replace(message, content=dialogue.unmarked(message.content)) for message in answer)


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
    """`[["question", "answer"], ...]`, or turns: what was said before."""
    if not shape.history or not row[shape.history] or _is_null(row[shape.history]):
        return ()
    path = _path(shape.history)
    messages: list[Message] = []
    for number, pair in enumerate(_list(row[shape.history], path)):
        at = f"{path}[{number}]"
        if isinstance(pair, dict):
            messages += _turn(pair, at)
            continue
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable("wrong_type", f"{_kind(pair)}, not a pair", "write [question, answer]", at)
        messages.append(Message("user", _text(pair[0], f"{at}[0]"), f"{at}[0]"))
        messages.append(Message("assistant", _text(pair[1], f"{at}[1]"), f"{at}[1]"))
    return tuple(messages)


def _preference(row: dict[str, Any], shape: Shape, tools: str, place: Place) -> Preference:
    """A prompt with two answers; where no column holds the prompt, it is what both answers' conversations share."""
    has_prompt = bool(shape.turns or shape.question)
    notes: list[Drop] = []
    chosen = _answered(row[shape.chosen], _path(shape.chosen), has_prompt)
    rejected = _answered(row[shape.rejected], _path(shape.rejected), has_prompt)
    prompt = _conversation(row, shape, notes) if has_prompt else chosen[:-1]
    if not prompt:
        raise Unusable("missing_field", "has chosen and rejected, but no prompt", "add the prompt", "$.prompt")
    if not has_prompt and prompt != rejected[:-1]:
        fix = "both must answer the same conversation"
        raise Unusable("turn_order", "chosen and rejected answer different conversations", fix, rejected[0].path)
    for answer in (chosen[-1], rejected[-1]):
        if answer.role != "assistant":
            fix = "it must be the assistant's"
            raise Unusable("no_assistant", f"the {answer.role} says this answer", fix, answer.path)
        _check_order((*prompt, answer))
    return Preference(prompt, chosen[-1], rejected[-1], place, tools, row, _at(notes, place, row))


def _answered(value: Any, path: str, has_prompt: bool) -> tuple[Message, ...]:
    """One of a preference's answers; where nothing else holds the prompt, with the conversation before it."""
    spoken = _spoken(value, "assistant", path)
    if has_prompt or not isinstance(value, str):
        return spoken
    dialogue = tell_apart(value, has_answer=False)
    return _as_messages(dialogue, path) if isinstance(dialogue, Dialogue) else spoken


def _tools(row: dict[str, Any], shape: Shape) -> str:
    value = row[shape.tools] if shape.tools else None
    if _is_null(value) or value in ("", "[]", [], {}):
        return ""
    path = _path(shape.tools)
    return _sound(value, path) if isinstance(value, str) else _as_json(value, path)


def _spoken(value: Any, role: Role, path: str) -> tuple[Message, ...]:
    """Text said by `role`, or whole turns, or one turn."""
    if isinstance(value, dict) and _key(value, "role", "from"):
        return _turn(value, path)
    if isinstance(value, list) and value and isinstance(value[0], dict) and _key(value[0], "role", "from"):
        return _turns(value, path)
    return (Message(role, _text(value, path), path),)


def _turns(value: Any, path: str) -> tuple[Message, ...]:
    turns = _list(value, path)
    if not turns:
        raise Unusable("no_assistant", "the conversation has no turns", "add a question and its answer", path)
    return tuple(message for number, turn in enumerate(turns) for message in _turn(turn, f"{path}[{number}]"))


def _turn(turn: Any, path: str) -> tuple[Message, ...]:
    """`{role, content}` or `{from, value}`; or question and answer in one object, `{human, assistant}`."""
    if not isinstance(turn, dict):
        fix = 'write {"role": "user", "content": ...}'
        raise Unusable("wrong_type", f"{_kind(turn)}, not a turn", fix, path)
    role_key, text_key = _key(turn, "role", "from"), _key(turn, "content", "value", "text")
    if not role_key:
        if pair := _pair_shape(turn):
            return _pair(turn, pair, path)
        fix = 'write {"role": "user", "content": ...}, or from and value'
        raise Unusable("missing_field", f"a turn with {listed(turn) or 'nothing'}, but no role", fix, path)
    said_by = turn[role_key]
    role = _ROLES.get(said_by.strip().lower()) if isinstance(said_by, str) else None
    if role is None:
        fix = "use system, user, assistant or tool (or human, gpt, function_call, observation)"
        raise Unusable("unknown_role", f"the role {_short(said_by)} is not known", fix, f"{path}.{role_key}")
    calls = turn.get("tool_calls")
    if calls and isinstance(calls, list) and not (text_key and turn[text_key]):
        return (Message(role, _called(calls, f"{path}.tool_calls"), f"{path}.tool_calls"),)
    if not text_key:
        raise Unusable("missing_field", f"a turn of the {role} without content", "add its content", path)
    said = _text(turn[text_key], f"{path}.{text_key}")
    if role == "assistant":
        said = _with_thought(turn, said)
    return (Message(role, said, f"{path}.{text_key}"),)


def _with_thought(turn: dict[str, Any], said: str) -> str:
    """An answer whose thought stands in a field of its own, as DeepSeek's and OpenAI's servers give it, with both."""
    thought = turn.get(_key(turn, "reasoning_content", "reasoning", "thinking"))
    if not isinstance(thought, str) or not thought.strip() or thoughts.CLOSE in said or not _is_sound(thought):
        return said
    return f"{thoughts.OPEN}\n{thought.strip()}\n{thoughts.CLOSE}\n\n{said}"


def _pair_shape(turn: dict[str, Any]) -> Shape | None:
    """The shape of a turn that is a small row of its own: question and answer, perhaps with system prompt and input."""
    if "role" in turn or "from" in turn:
        return None
    shape = shape_of(tuple(turn))
    return shape if isinstance(shape, Shape) and shape.question and shape.answer else None


def _pair(turn: dict[str, Any], shape: Shape, path: str) -> tuple[Message, ...]:
    try:
        messages = _conversation(turn, replace(shape, history="", tools=""), [])
    except Unusable as bad:
        drop = bad.drop
        raise Unusable(drop.code, drop.detail, drop.fix, path + drop.path.removeprefix("$")) from None
    return tuple(replace(message, path=path + message.path.removeprefix("$")) for message in messages)


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


def _is_sound(text: str) -> bool:
    """Whether this is a text that can be written and learned: no lone surrogates, no NUL, no megabytes."""
    if len(text) > MAX_FIELD_CHARS or "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sound(text: str, path: str) -> str:
    """The text itself, if it is one; else what is wrong with it."""
    if _is_sound(text):
        return text
    if len(text) > MAX_FIELD_CHARS:
        detail = f"{len(text):,} characters in one field, more than {MAX_FIELD_CHARS:,}"
        raise Unusable("too_large", detail, "split it; was a whole file put into one field?", path)
    if "\0" in text:
        raise Unusable("bad_encoding", f"a NUL (character {text.index(chr(0)) + 1})", "remove it", path)
    start = next(number for number, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    odd = ord(text[start])
    # The reader turns a byte that does not decode into the second range.
    what = f"the byte 0x{odd - 0xDC00:02X}" if 0xDC80 <= odd <= 0xDCFF else f"half a character, U+{odd:04X},"
    fix = "save the file as UTF-8, or mend the text there"
    raise Unusable("bad_encoding", f"{what} is no text (character {start + 1})", fix, path)


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
