"""Is a row worth learning from?  Small pure functions: a row → the row, or a Drop with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from dsr1_tune.data.record import Drop, Message, Preference, Prompt, Record, Row

# Zero-width characters and the byte order mark: they print nothing, and str.strip leaves them.
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"


def not_empty(row: Row) -> Row | Drop:
    """Drop a conversation in which a question or an answer is blank."""
    for message in _messages(row):
        if message.role in ("user", "assistant") and not _visible(message.content):
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
        length = len(_visible(text))
        if length < least:
            role = "user" if name == "question" else "assistant"
            path = next(message.path for message in reversed(row.messages) if message.role == role)
            fix = f"write more, or lower min_{name}_chars"
            return Drop(f"{name}_too_short", f"{length} characters, fewer than {least}: {text.strip()!r}", fix, path)
    return row


def _visible(text: str) -> str:
    return text.strip().strip(_INVISIBLE).strip()


def _messages(row: Row) -> Iterator[Message]:
    match row:
        case Record():
            yield from row.messages
        case Prompt():
            yield from row.messages
        case Preference():
            yield from row.prompt
            yield row.chosen
            yield row.rejected
