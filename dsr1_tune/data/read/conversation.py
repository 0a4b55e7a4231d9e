"""What is said in a row: system prompt, history, question and answer, or turns → messages in order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from dsr1_tune.data.read.calling.nulls import Filling
from dsr1_tune.data.read.calling.tools import Tools, read_tools
from dsr1_tune.data.read.formats import Shape, listed, shape_of
from dsr1_tune.data.read.role_tags import Dialogue, begins_with_role_tag, split_role_tags
from dsr1_tune.data.read.turn import is_learned, read_turn, together
from dsr1_tune.data.read.values import (
    Unusable,
    as_list,
    is_null,
    key_of,
    kind_of,
    path_to,
    sound_text,
    text_of,
)
from dsr1_tune.data.record import Drop, Message, Role

_FOLLOWS: dict[Role | None, tuple[Role, ...]] = {
    None: ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool", "user"),
}


def conversation(row: dict[str, Any], shape: Shape, tools: Tools, notes: list[Drop]) -> tuple[Message, ...]:
    """All that is said: system prompt, history, question and answer, or the turns; remarks are added to `notes`."""
    if shape.turns:
        said = _told(row[shape.turns], path_to(shape.turns), notes, tools)
    else:
        said = _asked(row, shape, notes, tools)
    messages = _history(row, shape, tools) + said
    if not shape.system or is_null(row[shape.system]):
        return messages
    system = Message("system", text_of(row[shape.system], path_to(shape.system)), path_to(shape.system))
    if not system.content.strip() or system in messages:
        return messages
    return (system, *messages)


def _told(value: Any, path: str, notes: list[Drop], tools: Tools) -> tuple[Message, ...]:
    """A list of turns, or one text in which tags tell them apart."""
    if not isinstance(value, str) or not begins_with_role_tag(value):
        return _turns(value, path, tools)
    dialogue = split_role_tags(sound_text(value, path), has_answer=False)
    if isinstance(dialogue, Drop):
        raise Unusable("wrong_type", dialogue.detail, dialogue.fix, path)
    if dialogue is None:
        return _turns(value, path, tools)
    notes.append(replace(dialogue.note, path=path))
    return as_messages(dialogue, path)


def as_messages(dialogue: Dialogue, path: str) -> tuple[Message, ...]:
    """The turns of a text, as messages."""
    return tuple(Message(role, text, path) for role, text in dialogue.turns)


def _asked(row: dict[str, Any], shape: Shape, notes: list[Drop], tools: Tools) -> tuple[Message, ...]:
    """The question with its answer, if there is one; a question with tags in it may be several turns."""
    question = _question(row, shape, tools)
    answer = spoken(row[shape.answer], "assistant", path_to(shape.answer), tools) if shape.answer else ()
    if len(question) > 1 or question[0].role != "user":
        return question + answer
    (asked,) = question
    dialogue = split_role_tags(asked.content, has_answer=True)
    if isinstance(dialogue, Drop):
        notes.append(replace(dialogue, path=asked.path))
    if not isinstance(dialogue, Dialogue):
        return question + answer
    notes.append(replace(dialogue.note, path=asked.path))
    turns = as_messages(dialogue, asked.path)
    return turns + tuple(replace(message, content=dialogue.unmarked(message.content)) for message in answer)


def _question(row: dict[str, Any], shape: Shape, tools: Tools) -> tuple[Message, ...]:
    filled = [name for name in shape.question if not is_null(row[name])]
    if not filled:
        raise Unusable("null_value", "is null", "write the question there", path_to(shape.question[0]))
    if len(filled) == 1:
        return spoken(row[filled[0]], "user", path_to(filled[0]), tools)
    parts = [text_of(row[name], path_to(name)) for name in filled]
    if shape.question[0].lower() == "title" and (parts[1].strip() == "无" or parts[0].strip() in parts[1]):
        # Forum data: the text under the headline says nothing ("none"), or says it all.
        parts = parts[:1] if parts[1].strip() == "无" else parts[1:]
    return (Message("user", "\n".join(part for part in parts if part.strip()), path_to(filled[0])),)


def _history(row: dict[str, Any], shape: Shape, tools: Tools) -> tuple[Message, ...]:
    """`[["question", "answer"], ...]`, or turns: what was said before."""
    if not shape.history or not row[shape.history] or is_null(row[shape.history]):
        return ()
    path = path_to(shape.history)
    messages: list[Message] = []
    for number, pair in enumerate(as_list(row[shape.history], path)):
        at = f"{path}[{number}]"
        if isinstance(pair, dict):
            messages += _turn(pair, at, tools)
            continue
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable("wrong_type", f"{kind_of(pair)}, not a pair", "write [question, answer]", at)
        messages.append(Message("user", text_of(pair[0], f"{at}[0]"), f"{at}[0]"))
        messages.append(Message("assistant", text_of(pair[1], f"{at}[1]"), f"{at}[1]"))
    return together(messages)


def tools_of(row: dict[str, Any], shape: Shape, filling: Filling) -> Tools:
    """The functions that may be called."""
    path = path_to(shape.tools)
    return read_tools(row[shape.tools] if shape.tools else None, path, row, filling)


def spoken(value: Any, role: Role, path: str, tools: Tools) -> tuple[Message, ...]:
    """Text said by `role`, or whole turns, or one turn."""
    if isinstance(value, dict) and key_of(value, "role", "from"):
        return _turn(value, path, tools)
    if isinstance(value, list) and value and isinstance(value[0], dict) and key_of(value[0], "role", "from"):
        return _turns(value, path, tools)
    return (Message(role, text_of(value, path), path),)


def _turns(value: Any, path: str, tools: Tools) -> tuple[Message, ...]:
    turns = as_list(value, path)
    if not turns:
        raise Unusable("no_assistant", "the conversation has no turns", "add a question and its answer", path)
    return together(message for number, turn in enumerate(turns) for message in _turn(turn, f"{path}[{number}]", tools))


def _turn(turn: Any, path: str, tools: Tools) -> tuple[Message, ...]:
    """One turn in any form; or question and answer in one object, `{human, assistant}`."""
    if not isinstance(turn, dict):
        fix = 'write {"role": "user", "content": ...}'
        raise Unusable("wrong_type", f"{kind_of(turn)}, not a turn", fix, path)
    if key_of(turn, "role", "from"):
        return read_turn(turn, path, tools)
    if pair := pair_shape(turn):
        return _pair(turn, pair, path)
    fix = 'write {"role": "user", "content": ...}, or from and value'
    raise Unusable("missing_field", f"a turn with {listed(turn) or 'nothing'}, but no role", fix, path)


def pair_shape(turn: dict[str, Any]) -> Shape | None:
    """The shape of a turn that is a small row of its own: question and answer, perhaps with system prompt and input."""
    if "role" in turn or "from" in turn:
        return None
    shape = shape_of(tuple(turn))
    return shape if isinstance(shape, Shape) and shape.question and shape.answer else None


def _pair(turn: dict[str, Any], shape: Shape, path: str) -> tuple[Message, ...]:
    try:
        messages = conversation(turn, replace(shape, history="", tools=""), Tools(), [])
    except Unusable as bad:
        drop = bad.drop
        raise Unusable(drop.code, drop.detail, drop.fix, path + drop.path.removeprefix("$")) from None
    is_shown_only = not is_learned(turn, path)
    return tuple(
        replace(
            message,
            path=path + message.path.removeprefix("$"),
            is_learned=not (is_shown_only and message.role == "assistant"),
        )
        for message in messages
    )


def check_order(messages: tuple[Message, ...]) -> None:
    """Raise Unusable where the turns do not follow one another as in a conversation; system turns stand anywhere."""
    for before, message in pairwise((None, *(message for message in messages if message.role != "system"))):
        previous = before.role if before else None
        if message is not None and message.role not in _FOLLOWS[previous]:
            where = f"follows the {previous}" if previous else "comes first"
            fix = "let a conversation begin with the user, and user and assistant take turns"
            raise Unusable("turn_order", f"the {message.role} {where}", fix, message.path)
