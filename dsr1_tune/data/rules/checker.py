"""The Checker: run a pack's rules over a row, which comes back, perhaps repaired, or as a Drop with the reason.

The rules are in `filters/`; each takes a row and its settings, and looks at a Record, at a Preference by its prompt and
chosen answer, at Feedback on a good answer, and, where it reads questions, at a Prompt and at Feedback on a bad answer.
The Checker runs those of a pack in order.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from dsr1_tune.data.record import Checked, Drop, Preference, Record, Row, messages_of, with_messages
from dsr1_tune.data.rules.codes import MEANINGS
from dsr1_tune.data.rules.packs import Custom, Pack, rule_of
from dsr1_tune.data.rules.registry import RULES
from dsr1_tune.data.rules.rule import Rule, RuleSettings
from dsr1_tune.data.rules.text_features import exemplary, lacks_answer, quoted, visible
from dsr1_tune.errors import DataError
from dsr1_tune.text.amount import amount


def not_empty(row: Row) -> Row | Drop:
    """Drop a conversation in which a question or an answer is blank."""
    for message in messages_of(row):
        if not visible(message.said) and message.role in ("user", "assistant"):
            name = "question" if message.role == "user" else "answer"
            return Drop(f"empty_{name}", f"the {name} is blank", f"write the {name}, or remove the row", message.path)
    return row


def long_enough(row: Row, min_question_chars: int, min_answer_chars: int) -> Row | Drop:
    """Drop a record whose question or final answer is too short to teach anything.

    Characters are counted, whatever the script: `是`, `B` and `42` are whole answers.
    """
    if not isinstance(row, Record):
        return row
    for name, text, least in (("question", row.question, min_question_chars), ("answer", row.answer, min_answer_chars)):
        length = len(visible(text))
        if length < least:
            role = "user" if name == "question" else "assistant"
            path = next(message.path for message in reversed(row.messages) if message.role == role)
            fix = f"write more, or lower min_{name}_chars"
            return Drop(
                f"{name}_too_short", f"{amount(length, 'character')}, fewer than {least}: {text.strip()!r}", fix, path
            )
    return row


# (name, whether it only warns, whether it reads rows without an answer, its function, its settings)
_Step = tuple[str, bool, bool, Callable[..., Row | Drop], Any]


class Checker:
    """Runs a pack's rules over rows. A process builds its own from the Pack."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self._steps: list[_Step] = []
        for name, rule in RULES.items():
            settings: RuleSettings = getattr(pack.rules, name)
            if not settings.is_idle:
                self._steps.append((name, settings.action == "warn", rule.reads_questions, rule.check, settings))
        self._steps += filter(None, map(_custom_step, pack.custom))

    def check(self, row: Row) -> Checked:
        """The row, perhaps repaired, or the Drop of the first rule that objects; and remarks of those that only warn.

        Of a preference, prompt and chosen answer are looked at; of a prompt, and of feedback on a bad answer, only what
        is asked. Raises DataError where a rule of the user's own fails.
        """
        notes: list[Drop] = []
        repaired: list[str] = []
        is_prompt = lacks_answer(row)
        for name, warns, reads_questions, function, settings in self._steps:
            if is_prompt and not reads_questions:
                continue
            outcome = function(row, settings)
            if outcome is row:
                continue
            if isinstance(outcome, Drop):
                if not warns:
                    return Checked(outcome, tuple(notes), tuple(repaired))
                notes.append(outcome)
            else:
                row = outcome
                repaired.append(name)
        return Checked(row, tuple(notes), tuple(repaired)) if notes or repaired else Checked(row)


def _custom_step(custom: Custom) -> _Step | None:
    """The step that runs a rule of the user's own; None where it is off."""
    rule = rule_of(custom.call)
    if isinstance(rule, Rule):
        settings = custom.settings_of(rule)
        step = partial(_ask_rule, rule, custom)
        warns = settings.action == "warn"
        return None if settings.is_idle else (custom.name or rule.name, warns, rule.reads_questions, step, settings)
    if custom.action == "off":
        return None
    return custom.title, custom.action == "warn", False, partial(_ask_function, rule), custom


def _ask_rule(rule: Rule, custom: Custom, row: Row, settings: RuleSettings) -> Row | Drop:
    """What a Rule of the user's own says of the row: the same or a repaired one, or a Drop with one of its codes."""
    try:
        outcome = rule.check(row, settings)
    except Exception as error:
        raise _failed(error, row, custom) from error
    if isinstance(outcome, Drop):
        return outcome if outcome.code in rule.codes else _without_code(outcome)
    if isinstance(outcome, Row):
        return outcome
    hint = f"let the check of {custom.call} return the row, perhaps repaired, or a Drop"
    raise DataError(f"{row.place}: the rule {custom.title} returns {quoted(repr(outcome))}", hint=hint)


def _failed(error: Exception, row: Row, custom: Custom) -> DataError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return DataError(
        f"{row.place}: the rule {custom.title} fails on this row: {type(error).__name__}: {error} "
        f"({place.filename}:{place.lineno})",
        hint=f"correct {custom.call}, or set its action to off",
    )


def _without_code(drop: Drop) -> Drop:
    """A Drop whose code nobody has explained, as one of the user's own rule."""
    return replace(drop, code="custom_rule", detail=f"{drop.code}: {drop.detail}")


def _ask_function(function: Callable[[Record], Any], row: Row, custom: Custom) -> Row | Drop:
    """What the user's own function says of the row: the same or a repaired one, or a Drop."""
    record = row if isinstance(row, Record) else Record(exemplary(row), row.place, row.tools, row.row)
    try:
        said = function(record)
    except Exception as error:
        raise _failed(error, row, custom) from error
    path = record.messages[-1].path
    match said:
        case None | True:
            return row
        case False:
            return Drop("custom_rule", f"{custom.title} objects", f"see {custom.call}", path)
        case str():
            return Drop("custom_rule", f"{custom.title}: {said}", f"see {custom.call}", path)
        case Drop():
            return said if said.code in MEANINGS else _without_code(said)
        case Record():
            return row if said == record else _as_row(said, row)
    raise DataError(
        f"{row.place}: the rule {custom.title} returns {quoted(repr(said))}",
        hint=f"let {custom.call} return the Record, a Drop, True or None where all is well, False or a text if not",
    )


def _as_row(record: Record, row: Row) -> Row:
    """A repaired record as the kind of row it came from, at the same place."""
    if isinstance(row, Record):
        return replace(record, place=row.place, row=row.row)
    rejected = (row.rejected,) if isinstance(row, Preference) else ()
    return with_messages(row, (*record.messages, *rejected))
