"""Preference and feedback rows: a better and a worse answer → Preference; an answer with a label → Feedback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from dsr1_tune.data.read.calling.tools import Tools
from dsr1_tune.data.read.conversation import as_messages, check_order, conversation, spoken
from dsr1_tune.data.read.formats import Shape
from dsr1_tune.data.read.labels import number_in, parse_label
from dsr1_tune.data.read.role_tags import Dialogue, split_role_tags
from dsr1_tune.data.read.values import Unusable, path_to, short
from dsr1_tune.data.record import Drop, Feedback, Message, Place, Preference
from dsr1_tune.text.composed import composed


def preference(row: dict[str, Any], shape: Shape, tools: Tools, place: Place, notes: list[Drop]) -> Preference:
    """A prompt with two answers; where no column holds it, both answers' conversations share it. Adds to `notes`."""
    (good, good_path), (bad, bad_path) = _two_answers(row, shape)
    has_prompt = bool(shape.turns or shape.question)
    chosen = _answered(good, good_path, has_prompt, tools)
    rejected = _answered(bad, bad_path, has_prompt, replace(tools, is_worse=True))
    told = _shared(chosen[:-1], rejected[:-1], has_prompt)
    asked = conversation(row, replace(shape, answer=""), tools, notes) if has_prompt else ()
    if (
        asked
        and asked[-1].role == "assistant"
        and _content(asked[-1]) in (_content(chosen[-1]), _content(rejected[-1]))
    ):
        # Turns beside a pair are often the prompt with one of the answers.
        asked = asked[:-1]
    prompt = _agreed(asked, told)
    if not prompt:
        fix = "add the prompt; or write both as messages that begin with it"
        raise Unusable("missing_field", "has chosen and rejected, but no prompt", fix, "$.prompt")
    for answer in (chosen[-1], rejected[-1]):
        if answer.role != "assistant":
            fix = "it must be the assistant's"
            raise Unusable("no_assistant", f"the {answer.role} says this answer", fix, answer.path)
        check_order((*prompt, answer))
    notes += _scored(row, shape)
    return Preference(prompt, chosen[-1], rejected[-1], place, tools.text, row)


def has_two_answers(row: dict[str, Any], shape: Shape) -> bool:
    """Whether the one column of answers holds a better and a worse one: `"output": [chosen, rejected]`."""
    said = row[shape.answer] if shape.answer.lower() == "output" and not shape.label else None
    return isinstance(said, list) and len(said) == 2 and all(isinstance(text, str) for text in said)


def _two_answers(row: dict[str, Any], shape: Shape) -> tuple[tuple[Any, str], tuple[Any, str]]:
    if shape.chosen:
        return (row[shape.chosen], path_to(shape.chosen)), (row[shape.rejected], path_to(shape.rejected))
    path, (good, bad) = path_to(shape.answer), row[shape.answer]
    return (good, f"{path}[0]"), (bad, f"{path}[1]")


def _answered(value: Any, path: str, has_prompt: bool, tools: Tools) -> tuple[Message, ...]:
    """One of a preference's answers; where nothing else holds the prompt, with the conversation before it."""
    said = spoken(value, "assistant", path, tools)
    if has_prompt or not isinstance(value, str):
        return said
    dialogue = split_role_tags(value, has_answer=False)
    return as_messages(dialogue, path) if isinstance(dialogue, Dialogue) else said


def _shared(before: tuple[Message, ...], others: tuple[Message, ...], has_prompt: bool) -> tuple[Message, ...]:
    """The conversation that stands before both answers; beside a prompt one of them may lack it."""
    must_agree = bool(before and others) or not has_prompt
    if must_agree and _said(before) != _said(others):
        fix = "both must answer the same conversation"
        path = next((a.path for a, b in zip(others, before, strict=False) if _said((a,)) != _said((b,))), "")
        path = path or (others or before)[0].path
        raise Unusable("turn_order", "chosen and rejected answer different conversations", fix, path)
    return before or others


def _agreed(asked: tuple[Message, ...], told: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt in its own column, or the conversation before the answers if that tells more."""
    if not told or not asked:
        return asked or told
    missing = [
        message for message in asked if message.role != "system" and _content(message) not in map(_content, told)
    ]
    if missing:
        detail = f"chosen and rejected answer another conversation, which lacks {short(missing[0].content)}"
        fix = "let the prompt and the conversation agree, or remove one of them"
        raise Unusable("turn_order", detail, fix, told[0].path)
    if asked[0].role == "system" and told[0].role != "system":
        return (asked[0], *told)
    return told


def _said(messages: Iterable[Message]) -> list[tuple[str, str]]:
    return [(message.role, _content(message)) for message in messages]


def _content(message: Message) -> str:
    return " ".join(composed(message.said).split())


def _scored(row: dict[str, Any], shape: Shape) -> list[Drop]:
    """A remark where the scores that stand in the row do not call the chosen answer the better one."""
    if not shape.scores:
        return []
    good, bad = (number_in(row[name]) for name in shape.scores)
    if good is None or bad is None or good > bad:
        return []
    detail = f"chosen has {good:g}, rejected {bad:g}"
    return [Drop("scores_disagree", detail, "swap them, or remove the row", path_to(shape.scores[0]))]


def feedback(row: dict[str, Any], shape: Shape, tools: Tools, place: Place, rated: str, notes: list[Drop]) -> Feedback:
    """A prompt with an answer and what people think of it; `rated` is a label that shows them to be ratings."""
    is_good = parse_label(row[shape.label], path_to(shape.label), rated)
    tools = replace(tools, is_worse=not is_good)
    messages = conversation(row, shape, tools, notes)
    if shape.turns and shape.answer and messages[-1].role != "assistant":
        messages += spoken(row[shape.answer], "assistant", path_to(shape.answer), tools)
    check_order(messages)
    if messages[-1].role != "assistant":
        detail = f"it ends with the {messages[-1].role}'s turn, so that there is no answer to label"
        raise Unusable("no_assistant", detail, "add the answer", messages[-1].path)
    return Feedback(messages[:-1], messages[-1], is_good, place, tools.text, row)
