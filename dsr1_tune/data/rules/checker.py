"""Is a row worth learning from?  Small pure functions: a row → the row, or a Drop with the reason.

The rules stand in the modules `rules_*`; each takes a row and the settings of its name in `rules_settings`, and looks
at a Record, at a Preference by its prompt and chosen answer, at Feedback on a good answer, and, where it asks about
questions, at a Prompt and at Feedback on a bad answer. The Checker runs those of a pack in order.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from dsr1_tune.data.record import CODES, Checked, Drop, Feedback, Preference, Record, Row, messages_of
from dsr1_tune.data.rules import answers, characters, language, repetition, truncation, wording
from dsr1_tune.data.rules.packs import Custom, Pack, Rules, function_of
from dsr1_tune.data.rules.settings import BlockedWord, Rule
from dsr1_tune.data.rules.text_features import lacks_answer, quoted, visible
from dsr1_tune.errors import DataError


def not_empty(row: Row) -> Row | Drop:
    """Drop a conversation in which a question or an answer is blank."""
    for message in messages_of(row):
        if not visible(message.content) and message.role in ("user", "assistant"):
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
            return Drop(f"{name}_too_short", f"{length} characters, fewer than {least}: {text.strip()!r}", fix, path)
    return row


_FUNCTIONS: dict[str, Callable[..., Row | Drop]] = {
    "encoding": characters.encoding,
    "lengths": answers.lengths,
    "placeholder_answer": answers.placeholder_answer,
    "replacement_character": characters.replacement_character,
    "repeated_turn": repetition.repeated_turn,
    "html_markup": characters.html_markup,
    "odd_characters": characters.odd_characters,
    "answer_repeats_question": answers.answer_repeats_question,
    "truncated_answer": truncation.truncated_answer,
    "refusal": wording.refusal,
    "answer_restates_question": answers.answer_restates_question,
    "repeated_lines": repetition.repeated_lines,
    "repeated_text": repetition.repeated_text,
    "wrong_language": language.wrong_language,
    "advertisement": wording.advertisement,
    "boilerplate": wording.boilerplate,
    "blocked_word": wording.blocked_word,
    "template_placeholder": characters.template_placeholder,
}
# Those that ask about questions; a Prompt has no answer for the others.
_OF_QUESTIONS = frozenset(
    ["encoding", "lengths", "replacement_character", "odd_characters", "blocked_word", "template_placeholder"]
)


class Checker:
    """Runs a pack's rules over rows. A process builds its own from the Pack."""

    def __init__(self, pack: Pack) -> None:
        self.pack = pack
        self._steps: list[tuple[str, bool, bool, Callable[..., Row | Drop], Any]] = []
        for name in Rules.model_fields:
            rule: Rule = getattr(pack.rules, name)
            if rule.action == "off" or (isinstance(rule, BlockedWord) and not rule.words):
                continue
            self._steps.append((name, rule.action == "warn", name in _OF_QUESTIONS, _FUNCTIONS[name], rule))
        for custom in pack.custom:
            if custom.action != "off":
                step = partial(_ask_custom, function_of(custom.call))
                self._steps.append((custom.title, custom.action == "warn", False, step, custom))

    def check(self, row: Row) -> Checked:
        """The row, perhaps mended, or the Drop of the first rule that objects; and remarks of those that only warn.

        Of a preference, prompt and chosen answer are looked at; of a prompt, and of feedback on a bad answer, only what
        is asked. Raises DataError where a rule of the user's own fails.
        """
        notes: list[Drop] = []
        mended: list[str] = []
        is_prompt = lacks_answer(row)
        for name, warns, of_questions, function, rule in self._steps:
            if is_prompt and not of_questions:
                continue
            outcome = function(row, rule)
            if outcome is row:
                continue
            if isinstance(outcome, Drop):
                if not warns:
                    return Checked(outcome, tuple(notes), tuple(mended))
                notes.append(outcome)
            else:
                row = outcome
                mended.append(name)
        return Checked(row, tuple(notes), tuple(mended)) if notes or mended else Checked(row)


def _ask_custom(function: Callable[[Record], Any], row: Record | Preference | Feedback, custom: Custom) -> Row | Drop:
    """What the user's own function says of the row: the same or a mended one, or a Drop."""
    record = _as_record(row)
    try:
        said = function(record)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"{row.place}: the rule {custom.title} fails on this row: {type(error).__name__}: {error} "
            f"({place.filename}:{place.lineno})",
            hint=f"correct {custom.call}, or set its action to off",
        ) from error
    path = record.messages[-1].path
    match said:
        case None | True:
            return row
        case False:
            return Drop("custom_rule", f"{custom.title} objects", f"see {custom.call}", path)
        case str():
            return Drop("custom_rule", f"{custom.title}: {said}", f"see {custom.call}", path)
        case Drop():
            return (
                said if said.code in CODES else replace(said, code="custom_rule", detail=f"{said.code}: {said.detail}")
            )
        case Record():
            return row if said == record else _as_row(said, row)
    raise DataError(
        f"{row.place}: the rule {custom.title} returns {quoted(repr(said))}",
        hint=f"let {custom.call} return the Record, a Drop, True or None where all is well, False or a text if not",
    )


def _as_record(row: Record | Preference | Feedback) -> Record:
    """The prompt with its good answer."""
    if isinstance(row, Record):
        return row
    answer = row.chosen if isinstance(row, Preference) else row.completion
    return Record((*row.prompt, answer), row.place, row.tools, row.row)


def _as_row(record: Record, row: Record | Preference | Feedback) -> Row:
    """A mended record as the kind of row it came from, at the same place."""
    if isinstance(row, Preference):
        return replace(row, prompt=record.messages[:-1], chosen=record.messages[-1])
    if isinstance(row, Feedback):
        return replace(row, prompt=record.messages[:-1], completion=record.messages[-1])
    return replace(record, place=row.place, row=row.row)
