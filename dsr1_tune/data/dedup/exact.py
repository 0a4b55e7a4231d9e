"""Exact duplicates: the one key by which rows are the same, for training, `data check` and `data clean` alike.

Width, case, punctuation, blanks, traditional characters and how accents are stored do not count; roles, the functions
that may be called and the kind of row do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from dsr1_tune.data.dedup.ngrams import Hashes, Ints, Text, normalise, running_sums
from dsr1_tune.data.output import turns_of_row
from dsr1_tune.data.record import Drop, Feedback, Preference, Row, messages_of
from dsr1_tune.text.composed import composed

KINDS = ("Record", "Preference", "Prompt", "Feedback")
"""Feedback on bad answers counts as a kind of its own, the next one: it repeats none on good answers."""
BLOCK_CHARS = 1 << 20
"""Rows are hashed in blocks of about so many characters: the arrays over them stay small."""


def kind_of(row: Row) -> int:
    """The kind of a row as a number: its index in KINDS, or len(KINDS) for feedback on a bad answer."""
    return KINDS.index(type(row).__name__) + (isinstance(row, Feedback) and not row.is_good)


@dataclass(frozen=True)
class Prints:
    """What tells rows apart: 128-bit hashes (N, 2) of all before the final answer, and of it; and their lengths (N).

    `tools` (N) hashes the functions that may be called, 0 where there are none. Rows that say the same have the same
    hashes. Lengths are in characters that count.
    """

    question: Hashes
    answer: Hashes
    tools: Hashes
    question_chars: npt.NDArray[np.int32]
    answer_chars: npt.NDArray[np.int32]

    @classmethod
    def concatenate(cls, parts: Sequence[Prints]) -> Prints:
        """The rows of all parts, of which there is at least one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def fingerprints(text: Text, rows: Sequence[Row]) -> Prints:
    """Hash every row in two parts; `text` is that of the rows' turns.

    The last turn is the answer if an assistant says it; of a preference the last two turns are.
    """
    counts = text.codes != 0
    running = running_sums(counts)
    marks = text.marks
    num_answers = np.array([1 + isinstance(row, Preference) for row in rows], np.int64)
    before = np.searchsorted(marks, text.bounds[1:]) - num_answers
    last = marks[np.maximum(before, 0)] if len(marks) else text.bounds[:-1]
    speaks = text.is_answer[last] if len(marks) else np.zeros(len(last), bool)
    middle = np.where(speaks, last, text.bounds[1:])
    starts, middles, ends = (running[places].astype(np.int64) for places in (text.bounds[:-1], middle, text.bounds[1:]))
    packed = memoryview(text.codes[counts].tobytes())
    digest = xxhash.xxh3_128_digest
    edges = zip((starts * 2).tolist(), (middles * 2).tolist(), (ends * 2).tolist(), strict=True)
    joined = b"".join([digest(packed[a:b]) + digest(packed[b:c]) for a, b, c in edges])
    pairs = np.frombuffer(joined, np.uint64).reshape(-1, 2, 2)
    tools = np.array([_hash_of(key) if (key := _beside(row)) else 0 for row in rows], np.uint64)
    lengths = (middles - starts).astype(np.int32), (ends - middles).astype(np.int32)
    return Prints(pairs[:, 0], pairs[:, 1], tools, *lengths)


def _beside(row: Row) -> str:
    """What tells rows of the same words apart: their tools, and which turns their authors let be learned."""
    masks = [message.is_learned for message in messages_of(row)]
    return row.tools + ("" if all(masks) else "".join("-+"[is_learned] for is_learned in masks))


def _hash_of(tools: str) -> int:
    return xxhash.xxh3_64_intdigest(composed(tools).encode())


def blocks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Successive rows, about BLOCK_CHARS characters at a time."""
    start = num_chars = 0
    for number, row in enumerate(rows):
        num_chars += sum(len(message.said) for message in messages_of(row))
        if num_chars >= BLOCK_CHARS:
            yield rows[start : number + 1]
            start, num_chars = number + 1, 0
    if start < len(rows):
        yield rows[start:]


def exact_duplicate(where: str) -> Drop:
    """Why a row falls out that says the same as the one that stands at `where`."""
    return Drop("exact_duplicate", f"the same as {where}", "remove one of them")


def first_copies(rows: Sequence[Row], yields: Sequence[bool] | None = None) -> Ints:
    """For each row (N) the number of the first one that says the same, itself where none before it does.

    Rows that `yields` marks come after all others.
    """
    if not rows:
        return np.zeros(0, np.int64)
    prints = [fingerprints(normalise([turns_of_row(row) for row in block]), block) for block in blocks(rows)]
    kinds = np.array([kind_of(row) for row in rows], np.uint8)
    everyone = np.arange(len(rows))
    order = np.lexsort((everyone, np.asarray(yields if yields is not None else np.zeros(len(rows)), bool)))
    return merge_exact(exact_key(Prints.concatenate(prints), kinds), np.argsort(order))


def exact_key(prints: Prints, kinds: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], ...]:
    """The columns (N each) that agree for rows that say the same, and for no others."""
    return (*prints.question.T, *prints.answer.T, prints.tools, kinds)


def merge_exact(key: Sequence[npt.NDArray[Any]], rank: Ints) -> Ints:
    """For each row (N) the one that stands for it, itself if it stays: of rows that agree in `key` the lowest rank."""
    _, group = np.unique(as_one(key), return_inverse=True)
    best = np.full(int(group.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(best, group, rank)
    leader = np.argsort(rank)[best[group]] if len(rank) else rank
    # Two different rows whose combined hashes happen to agree both stay.
    agree = np.ones(len(rank), bool)
    for column in key:
        agree &= column[leader] == column
    return np.where(agree, leader, np.arange(len(rank)))


def as_one(columns: Sequence[npt.NDArray[Any]] | Hashes) -> Hashes:
    """Columns (N each) as one value a row; among 2,000,000 different rows two agree by chance once in 10,000,000."""
    total = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        total ^= column
        total *= np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total
