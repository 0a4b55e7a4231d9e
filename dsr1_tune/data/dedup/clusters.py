"""Which rows are copies, and which copy stays?  Exact, near and contradictory rows, found on arrays of hashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from dsr1_tune.data.dedup.exact import Prints, as_one
from dsr1_tune.data.dedup.minhash import Pairs, Verified
from dsr1_tune.data.dedup.ngrams import Flags, Hashes, Ints
from dsr1_tune.text.composed import composed

SHORT_ANSWER_CHARS = 30
MIN_ASKED_CHARS = 6
MAX_ROUNDS = 20
MAX_CONTRADICTING = 200
"""So many of the rows that ask the same are compared with each other."""
_MARKS = " \t\n.,;:!?。，；：！？、\"'“”‘’()（）[]【】"


def preference_order(num_chars: Ints, keep: str, drawn: Flags) -> Ints:
    """Each row's rank (N); the lowest stays: better is the longer row, then the earlier one."""
    numbers = np.arange(len(num_chars))
    order = np.lexsort((numbers, -num_chars if keep == "better" else numbers, ~drawn))
    rank = np.empty(len(order), np.int64)
    rank[order] = numbers
    return rank


def answered_otherwise(prints: Prints, rows: Ints) -> list[Ints]:
    """Groups of `rows` that ask the same and have different short answers.

    Questions of a word or two ("go on", "thanks") are no questions that could be answered wrongly.
    """
    fits = (prints.answer_chars[rows] <= SHORT_ANSWER_CHARS) & (prints.question_chars[rows] >= MIN_ASKED_CHARS)
    rows = rows[fits]
    _, group, counts = np.unique(
        as_one((*prints.question[rows].T, prints.tools[rows])), return_inverse=True, return_counts=True
    )
    is_shared = counts[group] > 1
    rows, group = rows[is_shared], group[is_shared]
    order = np.argsort(group, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(group[order])) + 1) if len(rows) else []
    return [members for members in groups if len(np.unique(as_one(prints.answer[members].T))) > 1]


def contradictions(groups: Sequence[Ints], answers: Callable[[Ints], Sequence[str]]) -> dict[int, int]:
    """The rows of the groups whose answers cannot all be right, each with one that says otherwise.

    An answer that stands in another one ("Canberra", "It is Canberra, Australia") does not contradict it, nor do
    answers that all hold the shortest one.
    """
    found: dict[int, int] = {}
    for members in groups:
        said = list(zip(members.tolist(), answers(members), strict=True))[:MAX_CONTRADICTING]
        shortest = min((text for _, text in said), key=len)
        if all(_agree(shortest, text) for _, text in said):
            continue
        for row, text in said:
            other = next((other for other, b in said if not _agree(text, b)), None)
            if other is not None:
                found[row] = other
    return found


def _agree(a: str, b: str) -> bool:
    """Whether one answer stands in the other as a clause, from its beginning up to the end of a word."""
    short, long = sorted((composed(text).casefold().strip(_MARKS) for text in (a, b)), key=len)
    at = long.find(short)
    if at < 0 or (at > 0 and long[at - 1] not in _MARKS):
        return False
    inside = short[-1:] + long[at + len(short) : at + len(short) + 1]
    return not (len(inside) == 2 and inside.isascii() and inside.isalnum())


def merge_near(verified: Verified, rank: Ints, compare: Callable[[Pairs], Verified]) -> list[tuple[int, int, float]]:
    """Let the best row of each cluster stand for those that are similar to it, then the best of the rest, and so on.

    A chain of small changes is no reason to merge its ends: every row is similar to the one that stands for it.
    `compare` verifies further pairs. Returns (row, the one that stands for it, how similar they are).
    """
    similar = {(int(a), int(b)): float(s) for (a, b), s in zip(verified.pairs, verified.similarity, strict=True)}
    merged = []
    clusters = [sorted(cluster, key=lambda row: int(rank[row])) for cluster in _clusters(verified.pairs)]
    for _ in range(MAX_ROUNDS):
        pairs = [(min(best, row), max(best, row)) for best, *others in clusters for row in others]
        unknown = [pair for pair in pairs if pair not in similar]
        if unknown:
            similar.update(dict.fromkeys(unknown, 0.0))
            further = compare(np.array(unknown, np.int64))
            found = zip(further.pairs.tolist(), further.similarity.tolist(), strict=True)
            similar.update({(a, b): value for (a, b), value in found})
        left = []
        for best, *others in clusters:
            rest = []
            for row in others:
                value = similar[(min(best, row), max(best, row))]
                if value > 0:
                    merged.append((row, best, value))
                else:
                    rest.append(row)
            if len(rest) > 1:
                left.append(rest)
        clusters = left
        if not clusters:
            break
    return merged


def _clusters(pairs: Pairs) -> list[list[int]]:
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in pairs.tolist():
        parent[max(root(a), root(b))] = min(root(a), root(b))
    clusters: dict[int, list[int]] = defaultdict(list)
    for row in sorted(parent):
        clusters[root(row)].append(row)
    return list(clusters.values())


def group_alike(questions: Hashes, pairs: Pairs) -> Ints:
    """A number per row (N): the same for rows with the same question, and for rows that `pairs` join."""
    _, first, group = np.unique(as_one(questions.T), return_index=True, return_inverse=True)
    leader = first[group]
    moved = [(row, cluster[0]) for cluster in _clusters(leader[pairs]) for row in cluster]
    if moved:
        old, new = np.array(sorted(moved), np.int64).T
        places = np.minimum(np.searchsorted(old, leader), len(old) - 1)
        leader = np.where(old[places] == leader, new[places], leader)
    return leader


def joined(stands_for: Ints) -> Pairs:
    """Each row that another one stands for, with that one."""
    moved = np.flatnonzero(stands_for != np.arange(len(stands_for)))
    return np.stack((stands_for[moved], moved), axis=1)
