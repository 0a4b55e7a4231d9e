"""Seen before?  Exact duplicates, near-duplicates, contradictions: which row stands for which."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.config import Dedup
from dsr1_tune.data.clean.store import Spill
from dsr1_tune.data.clean.workers import Crew, Doubtful
from dsr1_tune.data.dedup.clusters import (
    answered_otherwise,
    contradictions,
    group_alike,
    merge_exact,
    merge_near,
    preference_order,
)
from dsr1_tune.data.dedup.minhash import BATCH_BYTES, BATCH_PAIRS, Pairs, Verified, likely_pairs
from dsr1_tune.data.dedup.ngrams import Flags, Ints
from dsr1_tune.data.output import answer_of
from dsr1_tune.data.rules.pairs import opposed

Say = Callable[[str], None]


@dataclass(frozen=True)
class Copies:
    """For each row (N): the row that stands for it, itself if it stays; and how similar it is to it.

    `contradicted` are rows with a row that answers the same question otherwise, or judges the same answers otherwise.
    Rows with the same number in `alike` must not be separated by a split.
    """

    stands_for: Ints
    is_exact: Flags
    similarity: npt.NDArray[np.float32]
    contradicted: dict[int, int]
    alike: Ints


def find_copies(spill: Spill, dedup: Dedup, drawn: Flags, crew: Crew, say: Say) -> Copies:
    """Exact duplicates first, then near-duplicates, then contradictions among what is left.

    Opposite judgements come before the near-duplicates: a pair that stands the other way round is no copy.

    `drawn` (N) are the rows that a file's weight leaves: they stand for others before those that it does not.
    """
    prints = spill.prints
    everyone = np.arange(spill.num_rows)
    rank = preference_order(prints.question_chars + prints.answer_chars, dedup.keep, drawn)
    leader = merge_exact((*prints.question.T, *prints.answer.T, spill.kinds), rank)
    opposites = opposed(map(int, spill.stances)) if dedup.contradictions else {}
    is_opposed = np.isin(everyone, list(opposites))
    close = _near_pairs(spill, np.flatnonzero((leader == everyone) & ~is_opposed), dedup, crew, say)
    alike = group_alike(prints.question, np.concatenate((close.pairs, _joined(leader))))
    stands_for = leader if dedup.exact or dedup.near else everyone
    similarity = np.ones(spill.num_rows, np.float32)
    if dedup.near:

        def compare(pairs: Pairs) -> Verified:
            return _compared(spill, pairs, dedup.similarity, crew)

        best = everyone.copy()
        for one in merge_near(close, rank, compare):
            best[one.row], similarity[one.row] = one.kept, one.similarity
        # The exact copies of a row go where it goes.
        stands_for, similarity = best[leader], similarity[leader]
    rows = np.flatnonzero((stands_for == everyone) & (spill.kinds == 0))
    contradicted = _contradicted(spill, rows) if dedup.contradictions else {}
    # Nor can anybody say that the copies of a contradicted row are right.
    is_contradicted = np.isin(stands_for, list(contradicted))
    others = {int(row): contradicted[int(stands_for[row])] for row in np.flatnonzero(is_contradicted)}
    is_contradicted |= is_opposed
    whole = np.where(is_contradicted, everyone, stands_for)
    return Copies(whole, stands_for == leader, similarity, others | opposites, alike)


def _contradicted(spill: Spill, rows: Ints) -> dict[int, int]:
    """Those of `rows` that another one contradicts, with that one."""

    def answers(members: Ints) -> list[str]:
        return [answer_of(output) for output in spill.outputs(members)]

    return contradictions(answered_otherwise(spill.prints, rows), answers)


def _joined(stands_for: Ints) -> Pairs:
    """Each row that another one stands for, with that one."""
    moved = np.flatnonzero(stands_for != np.arange(len(stands_for)))
    return np.stack((stands_for[moved], moved), axis=1)


def _near_pairs(spill: Spill, rows: Ints, dedup: Dedup, crew: Crew, say: Say) -> Verified:
    """The near-duplicates among `rows`; found even if they are not merged, so that a split keeps them together."""
    if not spill.has_bands():
        return Verified.together([])
    pairs = likely_pairs(spill.bands, spill.sketches, rows, dedup.similarity)
    # Only rows of the same kind say the same.
    pairs = pairs[spill.kinds[pairs[:, 0]] == spill.kinds[pairs[:, 1]]]
    say(f"comparing {len(pairs):,} pairs that may be near-duplicates")
    return _compared(spill, pairs, dedup.similarity, crew)


def _compared(spill: Spill, pairs: Pairs, similarity: float, crew: Crew) -> Verified:
    def doubtful() -> Iterator[Doubtful]:
        # A few hundred pairs at a time, and fewer of long rows.
        weight = np.cumsum(spill.num_bytes(pairs[:, 0]) + spill.num_bytes(pairs[:, 1]), dtype=np.int64)
        number = np.arange(len(pairs)) // BATCH_PAIRS + weight // BATCH_BYTES
        for part in np.split(pairs, np.flatnonzero(np.diff(number)) + 1) if len(pairs) else []:
            rows = np.unique(part)
            yield Doubtful(part, rows, spill.whereabouts(rows), similarity)

    return crew.compare_all(doubtful(), len(pairs))
