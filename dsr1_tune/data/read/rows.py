"""A raw row → Record, Preference, Feedback or Prompt; or a Drop that names the exact place and the fix."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

from dsr1_tune.data.read.calling.nulls import Filling
from dsr1_tune.data.read.conversation import check_order, conversation, pair_shape, tools_of
from dsr1_tune.data.read.formats import Names, Shape, listed, shape_of, unlabelled
from dsr1_tune.data.read.ground_truth import result_of
from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.labels import Labels
from dsr1_tune.data.read.missing import Missing, said_of
from dsr1_tune.data.read.preferences import feedback, has_two_answers, preference
from dsr1_tune.data.read.role_tags import Dialogue, begins_with_role_tag, split_role_tags
from dsr1_tune.data.read.values import Unusable, is_null, is_sound, kind_of, path_to
from dsr1_tune.data.record import Drop, Message, Place, Prompt, Record, Row

MAX_PLANS = 4096
INLINE_ROLE_TAGS = "tagged text"
FEEDBACK = "feedback"

_EXAMPLE = 'write each row as {"input": "the question", "output": "the answer"}'


@dataclass(frozen=True, slots=True)
class Learned:
    """What the first rows of a file taught about all of them.

    `usual` is the shape that most rows have, to say what another one lacks; with `prompts` a row without an answer is
    a Prompt, else a mistake; `format` is the most frequent format's name; `missing` tells blanks that are spelled out,
    `filling` which nulls nobody wrote.
    """

    names: Names = ()
    usual: Shape | None = None
    prompts: bool = True
    format: str = ""
    labels: Labels = field(default_factory=Labels)
    missing: Missing = field(default_factory=Missing)
    filling: Filling = field(default_factory=Filling)


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
                raise Unusable("not_an_object", f"{kind_of(row)}, not an object with named fields", _EXAMPLE)
            notes: list[Drop] = []
            filled = self._learned.missing.blanked(row, notes)
            found = self._row(filled, place)
            return _noted(found, notes, row) if notes else found
        except Unusable as bad:
            return said_of(row, bad.drop).at(place, "read", row)

    def _row(self, row: dict[str, Any], place: Place) -> Row:
        """What a row with named fields means; raises Unusable."""
        # Rows with the same fields of the same types are alike: what is found out for one holds for all.
        like = (*row, *map(type, row.values()))
        plan = self._plans.get(like) or self._plan(like, row)
        if plan.texts and (record := _plain_record(row, plan, place)):
            self.formats[plan.shape.name] += 1
            return record
        self.formats[_format(row, plan.shape)] += 1
        return _carefully(row, plan.shape, place, self._learned)

    def _plan(self, like: tuple[Any, ...], row: dict[str, Any]) -> _Plan:
        self.columns.update(row)
        shape = _shape(row, self._learned)
        plan = _Plan.of(shape, row)
        # A float may be null (NaN), and role tags are recognised by what a text says: each such row is looked at.
        if float not in like and shape.name != INLINE_ROLE_TAGS:
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
        is_special = shape.turns or shape.chosen or shape.label or is_forum
        is_plain = bool(shape.question and shape.answer and not is_special)
        blank = tuple(name for name in (shape.system, shape.history, shape.tools) if name)
        # An empty list is no history and no tools, but a mistake for a system prompt.
        may_be_blank = all(isinstance(row[name], (str, list, NoneType)) for name in blank) and not (
            shape.system and isinstance(row[shape.system], list)
        )
        if not is_plain or not may_be_blank or any(type(row[name]) is not str for name in texts):
            return cls(shape)
        return cls(shape, texts, blank, (path_to(texts[0]), path_to(shape.answer)))


def _plain_record(row: dict[str, Any], plan: _Plan, place: Place) -> Record | None:
    """The record, if nothing about the row needs care; what `_carefully` makes of it, in a third of the time."""
    texts = [row[name] for name in plan.texts]
    answer = texts.pop()
    question = asked = "\n".join(texts)
    if len(texts) > 1 and not all(map(str.strip, texts)):
        question = "\n".join([text for text in texts if text.strip()])
    needs_care = (
        begins_with_role_tag(question)
        or not (is_sound(asked) and is_sound(answer))
        or (plan.blank and any(row[name] for name in plan.blank))
    )
    if needs_care:
        return None
    path, answer_path = plan.paths
    return Record((Message("user", question, path), Message("assistant", answer, answer_path)), place, "", row)


def _carefully(row: dict[str, Any], shape: Shape, place: Place, learned: Learned) -> Row:
    """The row of any shape; raises Unusable."""
    notes: list[Drop] = []
    found = _understood(row, shape, place, learned, notes)
    return _noted(found, notes, row) if notes else found


def _noted(found: Row, notes: list[Drop], row: dict[str, Any]) -> Row:
    """The row with further remarks."""
    return replace(found, notes=(*found.notes, *(note.at(found.place, "read", row) for note in notes)))


def _understood(row: dict[str, Any], shape: Shape, place: Place, learned: Learned, notes: list[Drop]) -> Row:
    tools = tools_of(row, shape, learned.filling)
    if shape.chosen or has_two_answers(row, shape):
        return preference(row, shape, tools, place, notes)
    if shape.label:
        return feedback(row, shape, tools, place, learned.labels.rated, notes)
    messages = conversation(row, shape, tools, notes)
    check_order(messages)
    if messages[-1].role == "assistant":
        return Record(messages, place, tools.text, row)
    if not learned.prompts:
        fix = "add the answer, or remove the last turn"
        raise Unusable("no_assistant", f"it ends with the {messages[-1].role}'s turn", fix, messages[-1].path)
    return Prompt(messages, result_of(row, shape.result), place, tools.text, row)


def _format(row: dict[str, Any], shape: Shape) -> str:
    """The shape's name, but for turns in pairs, which only their content tells from ShareGPT's."""
    turns = row[shape.turns] if shape.turns and not shape.chosen else None
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and pair_shape(turns[0]):
        return "pairs"
    return "preference" if has_two_answers(row, shape) else shape.name


def _shape(row: dict[str, Any], learned: Learned) -> Shape:
    """The shape of the row's filled fields: tables made of several formats fill the others' columns with null."""
    names, prompts = learned.names, learned.prompts
    filled = tuple(name for name, value in row.items() if not is_null(value))
    shape = shape_of(filled, names)
    if len(filled) < len(row) and (isinstance(shape, Drop) or shape.is_prompt):
        whole = shape_of(tuple(row), names)
        if isinstance(whole, Shape) and not whole.is_prompt:
            # The right columns are there and hold null; whoever reads them will say which.
            return whole
    if isinstance(shape, Drop) or (shape.is_prompt and not prompts):
        if isinstance(row.get("text"), str) and isinstance(split_role_tags(row["text"], has_answer=False), Dialogue):
            return Shape(INLINE_ROLE_TAGS, turns="text")
        _compare(row, learned.usual)
        if isinstance(shape, Drop):
            raise Unusable(shape.code, shape.detail, shape.fix, shape.path)
        fix = "add the answer, or name it: --map answer=NAME"
        raise Unusable("missing_field", f"has {listed(shape.question)}, but no answer", fix)
    return _labelled(row, shape, learned)


def _labelled(row: dict[str, Any], shape: Shape, learned: Learned) -> Shape:
    """The shape with its label, where labels say good or bad in this file; Unusable where only this row lacks its."""
    if shape.label:
        is_feedback = shape.sure_label or learned.labels.rows != "none"
        return replace(shape, name=FEEDBACK) if is_feedback else unlabelled(shape)
    usual = learned.usual
    if usual and usual.label and learned.labels.rows == "most" and unlabelled(usual) == shape:
        fix = "write true or false, or remove the row"
        if usual.label in row:
            raise Unusable("null_value", "is null", fix, path_to(usual.label))
        raise Unusable("missing_field", f"has no {usual.label!r}, which the other rows have", fix, path_to(usual.label))
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
        raise Unusable("missing_field", detail, fix, path_to(lacking[0]))
