"""Exact duplicates: the key by which records are the same."""

from __future__ import annotations

from hashlib import blake2b

from dsr1_tune.data.record import Drop, Feedback, Message, Place, Prompt, Row, messages_of


class Seen:
    """Remembers every row by 16 bytes and its place."""

    def __init__(self) -> None:
        self._places: dict[bytes, Place] = {}

    def first_time(self, row: Row) -> Row | Drop:
        """The row, or a Drop that names the place of its first copy."""
        first = self._places.setdefault(fingerprint(row), row.place)
        if first is row.place:
            return row
        where = f"line {first.line}" if first.file == row.place.file else str(first)
        return Drop("exact_duplicate", f"the same as {where} (row {first.index})", "remove one of them")


def fingerprint(row: Row) -> bytes:
    """16 bytes, equal for rows that say the same: roles and texts count, the kind and number of blanks do not."""
    digest = blake2b(digest_size=16)
    for part in (type(row).__name__, row.tools, *_parts(row)):
        text = " ".join(part.split())
        # The length keeps "ab" + "c" apart from "a" + "bc".
        digest.update(f"{len(text)}:{text}".encode())
    return digest.digest()


def _parts(row: Row) -> list[str]:
    messages = messages_of(row)
    if isinstance(row, Prompt):
        messages = (*messages, Message("assistant", row.answer or ""))
    if isinstance(row, Feedback):
        messages = (*messages, Message("user", str(row.is_good)))
    return [part for message in messages for part in (message.role, message.content)]
