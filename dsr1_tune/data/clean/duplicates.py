"""Seen before?  Exact duplicates, near-duplicates, contradictions: which row stands for which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.config import Dedup
from dsr1_tune.data.clean.row_store import RowStore
from dsr1_tune.data.clean.workers import Doubtful, WorkerPool
from dsr1_tune.data.dedup import clusters
from dsr1_tune.data.dedup.exact import exact_key, merge_exact
from dsr1_tune.data.dedup.minhash import Pairs, Verified, batches, near_pairs
from dsr1_tune.data.dedup.ngrams import Flags, Ints
from dsr1_tune.data.output import answer_of
from dsr1_tune.data.rules.pairs import opposed
from dsr1_tune.text.amount import amount

Say = Callable[[str], None]


@dataclass(frozen=True)
class Copies:
    """For each row (N): the row that stands for it, itself if it stays; and how similar it is to it.

    `same_as` is the row that says exactly the same and goes before it, itself where there is none. `contradicted` are
    rows with a row that answers the same question otherwise, or judges the same answers otherwise; none stands for
    another. Rows with the same number in `alike` must not be separated by a split.
    """

    stands_for: Ints
    same_as: Ints
    similarity: npt.NDArray[np.float32]
    contradicted: dict[int, int]
    alike: Ints


def find_copies(store: RowStore, dedup: Dedup, drawn: Flags, pool: WorkerPool, say: Say) -> Copies:
    """Exact duplicates first, then near-duplicates, then contradictions among what is left.

    Opposite judgements come before the near-duplicates: a pair that stands the other way round is no copy.

    `drawn` (N) are the rows that a file's weight leaves: they stand for others before those that it does not.
    """
    prints = store.prints
    everyone = np.arange(store.num_rows)
    rank = clusters.preference_order(prints.question_chars + prints.answer_chars, dedup.keep, drawn)
    leader = merge_exact(exact_key(prints, store.kinds), rank)
    opposites = opposed(map(int, store.stances)) if dedup.contradictions else {}
    is_opposed = np.isin(everyone, list(opposites))

    def compare(pairs: Pairs) -> Verified:
        parts = ((part, np.unique(part)) for part in batches(pairs, store.num_bytes))
        doubtful = (Doubtful(part, rows, store.whereabouts(rows), dedup.similarity) for part, rows in parts)
        return pool.compare_all(doubtful, len(pairs))

    def compare_aloud(pairs: Pairs) -> Verified:
        say(f"comparing what may be near-duplicates: {amount(len(pairs), 'pair')}")
        return compare(pairs)

    close = Verified.together([])
    if store.has_bands():  # also where none is merged, so that a split keeps them together
        sorts = np.stack((store.kinds, prints.tools), axis=1)
        singles = np.flatnonzero((leader == everyone) & ~is_opposed)
        close = near_pairs(store.bands, store.sketches, singles, sorts, dedup.similarity, compare_aloud)
    alike = clusters.group_alike(prints.question, np.concatenate((close.pairs, clusters.joined(leader))))
    stands_for = same_as = leader if dedup.exact or dedup.near else everyone
    similarity = np.ones(store.num_rows, np.float32)
    if dedup.near:
        best = everyone.copy()
        for row, kept, value in clusters.merge_near(close, rank, compare):
            best[row], similarity[row] = kept, value
        # The exact copies of a row go where it goes.
        stands_for, similarity = best[leader], similarity[leader]
    contradicted = {}
    if dedup.contradictions:
        rows = np.flatnonzero((stands_for == everyone) & (store.kinds == 0))
        groups = clusters.answered_otherwise(store.prints, rows)
        contradicted = clusters.contradictions(groups, lambda of: list(map(answer_of, store.outputs(of))))
    # Nor can anybody say that the copies of a contradicted row are right.
    is_contradicted = np.isin(stands_for, list(contradicted))
    others = {int(row): contradicted[int(stands_for[row])] for row in np.flatnonzero(is_contradicted)}
    is_contradicted |= is_opposed
    stands_for = np.where(is_contradicted, everyone, stands_for)
    return Copies(stands_for, same_as, similarity, others | opposites, alike)
