"""The rule about questions and answers that are too short or too long."""

from __future__ import annotations

from dsr1_tune.config import Count
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.data.rules.rule import Meaning, Rule, RuleSettings
from dsr1_tune.data.rules.text_features import quoted, view, visible
from dsr1_tune.text.amount import amount


class Lengths(RuleSettings):
    """Questions and answers too short to say anything, or too long to be learned from."""

    min_question_chars: Count = 1
    """Shorter questions are dropped."""
    min_answer_chars: Count = 1
    """Shorter final answers are dropped; whole answers such as B, 42 or 是 are short."""
    max_chars: Count = 32_000
    """Longer questions and answers are dropped."""


def lengths(row: Row, settings: Lengths) -> Row | Drop:
    """Drop a row with a question or answer far too long, or a final one too short."""
    seen = view(row)
    for text in seen.texts:
        if len(text.content) > settings.max_chars and text.message.role in ("user", "assistant"):
            name = "question" if text.message.role == "user" else "answer"
            detail = f"{amount(len(text.content), 'character')}, more than {settings.max_chars}: {quoted(text.content)}"
            fix = "cut it into several rows, or raise lengths.max_chars"
            return Drop(f"{name}_too_long", detail, fix, text.message.path)
    parts = ("question", seen.question, settings.min_question_chars), ("answer", seen.answer, settings.min_answer_chars)
    for name, part, least in parts:
        if part and len(part.content) < least + 16 and (length := len(visible(part.content))) < least:
            detail = f"{amount(length, 'character')}, fewer than {least}: {part.content.strip()!r}"
            fix = f"write more, or lower lengths.min_{name}_chars"
            return Drop(f"{name}_too_short", detail, fix, part.message.path)
    return row


LENGTHS = Rule(
    "lengths",
    lengths,
    {
        "question_too_short": Meaning("the question is shorter than min_question_chars", "问题短于 min_question_chars"),
        "answer_too_short": Meaning("the answer is shorter than min_answer_chars", "回答短于 min_answer_chars"),
        "question_too_long": Meaning("the question is longer than max_chars", "问题长于 max_chars"),
        "answer_too_long": Meaning("the answer is longer than max_chars", "回答长于 max_chars"),
    },
    Lengths,
    reads_questions=True,
)
