"""Which rows say nearly the same?  MinHash bands propose pairs, the texts themselves decide.

Memory: a band at a time, 32 bytes a row; texts and sketches are read from disk for the proposed pairs only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.output import Turns
from dsr1_tune.data.shingles import NUM_BANDS, Flags, Grams, Hashes, Ints, Text, Tokens, grams, normalise, tokens

Pairs = npt.NDArray[np.int64]
"""(P, 2) row numbers, the smaller one first."""

NUM_BEFORE = 3
"""In a bucket of a band, a row is compared with the first one and with so many before it, so that a bucket of a
thousand rows costs thousands of comparisons and not a million."""
SKETCH_SLACK = 0.14
"""The sketch's estimate of the similarity is off by more in one pair of a thousand."""
WORD_EXPONENT = 2.0
"""An edit changes more words than characters: 0.8 of the characters' n-grams are about 0.64 of the words'."""
MIN_ANSWER_SIMILARITY = 0.6
MIN_CORE_TOKENS = 3
SHORT_ANSWER_TOKENS = 8
MIN_CORE_SIMILARITY = 0.5
BATCH_PAIRS = 2000
WAITING_PAIRS = 1 << 18
MIN_BOILERPLATE_ROWS = 20
MIN_BOILERPLATE_RUN = 24

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def likely_pairs(
    bands: Callable[[int], Hashes],
    sketches: Callable[[Ints], npt.NDArray[np.uint8]],
    rows: Ints,
    similarity: float,
) -> Pairs:
    """Pairs of `rows` that are equal in a band and whose sketches agree about as much as similar rows' do.

    `bands(b)` are all rows' hashes (N) in band b; `sketches(rows)` reads (R, 125) bytes of rows in ascending order.
    """
    kept: list[Pairs] = []
    waiting: list[Pairs] = []
    for pairs in _proposed(bands, rows):
        waiting.append(pairs)
        if sum(map(len, waiting)) >= WAITING_PAIRS:
            kept.append(_alike(_once(waiting), sketches, similarity))
            waiting = []
    kept.append(_alike(_once(waiting), sketches, similarity))
    return _once(kept)


def _proposed(bands: Callable[[int], Hashes], rows: Ints) -> Iterator[Pairs]:
    """Pairs that are equal in a band; the same one may come from several."""
    for band in range(NUM_BANDS):
        values = bands(band)[rows]
        order = np.argsort(values, kind="stable")
        values = values[order]
        is_first = np.concatenate(([True], values[1:] != values[:-1]))
        starts = np.flatnonzero(is_first)[np.cumsum(is_first) - 1]
        places = np.arange(len(order))
        for step in (*range(1, NUM_BEFORE + 1), 0):
            before = places - step if step else starts
            fits = (before >= starts) & (places - before > (0 if step else NUM_BEFORE))
            found = np.stack((rows[order[before[fits]]], rows[order[places[fits]]]), axis=1)
            if len(found):
                yield np.sort(found, axis=1)


def _once(parts: Sequence[Pairs]) -> Pairs:
    """All pairs, in order, each once."""
    pairs = np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)
    packed = np.unique((pairs[:, 0] << 32) | pairs[:, 1])
    return np.stack((packed >> 32, packed & 0xFFFFFFFF), axis=1)


def _alike(pairs: Pairs, sketches: Callable[[Ints], npt.NDArray[np.uint8]], similarity: float) -> Pairs:
    needed, numbers = np.unique(pairs, return_inverse=True)
    numbers = numbers.reshape(pairs.shape)
    read = sketches(needed)
    agreement = np.empty(len(pairs))
    for start in range(0, len(pairs), BATCH_PAIRS):
        a, b = numbers[start : start + BATCH_PAIRS].T
        agreement[start : start + BATCH_PAIRS] = (read[a] == read[b]).mean(axis=1)
    return pairs[agreement >= similarity**WORD_EXPONENT - SKETCH_SLACK]


@dataclass(frozen=True)
class Verified:
    """The pairs that are near-duplicates, and how similar they are (P)."""

    pairs: Pairs
    similarity: npt.NDArray[np.float64]


def verify(
    pairs: Pairs, turns: Callable[[Ints], Sequence[Turns]], similarity: float, boilerplate: Lookup
) -> Iterator[Verified]:
    """Compare the texts of each pair, some thousand pairs at a time; `turns(rows)` reads rows.

    Two rows are near-duplicates if they share enough of their n-grams, if their answers are alike as well, if the
    same numbers stand in their questions, and if what is left of the questions after their common beginning and end
    is alike: with a long text before it, two different questions share nearly all n-grams. Where the answers are
    short, nothing may be left.
    """
    for start in range(0, len(pairs), BATCH_PAIRS):
        part = pairs[start : start + BATCH_PAIRS]
        needed, numbers = np.unique(part, return_inverse=True)
        rows = _Compared.of(turns(needed), boilerplate)
        values = np.array([rows.similarity(int(a), int(b), similarity) for a, b in numbers.reshape(part.shape)])
        yield Verified(part[values > 0], values[values > 0])


@dataclass(frozen=True)
class _Compared:
    """Rows taken apart for comparison."""

    grams: Grams
    is_kept: Flags
    tokens: Tokens
    numbers: list[list[str]]

    @classmethod
    def of(cls, rows: Sequence[Turns], boilerplate: Lookup) -> _Compared:
        text: Text = normalise(rows)
        found = tokens(text)
        pieces = grams(found)
        numbers = [
            [number for role, said in turns if role != "assistant" for number in _NUMBER.findall(said)]
            for turns in rows
        ]
        return cls(pieces, own_words(pieces, boilerplate), found, numbers)

    def similarity(self, a: int, b: int, least: float) -> float:
        """How similar two rows are, or 0 where they are no near-duplicates.

        The Jaccard index of their n-grams; of words, which an edit changes more of, brought to the scale of characters.
        """
        whole = _jaccard(self._grams(a), self._grams(b))
        if not self._is_cjk(a):
            whole **= 1 / WORD_EXPONENT
        if whole < least or self.numbers[a] != self.numbers[b]:
            return 0.0
        if _jaccard(self._answer(a), self._answer(b)) < MIN_ANSWER_SIMILARITY:
            return 0.0
        core_a, core_b = _cores(self._question(a), self._question(b))
        # "Is it safe to take amoxicillin?" and "... ibuprofen?" may both be answered by a yes.
        if len(core_a) and len(core_b) and min(self._num_said(a), self._num_said(b)) <= SHORT_ANSWER_TOKENS:
            return 0.0
        if min(len(core_a), len(core_b)) >= MIN_CORE_TOKENS and _jaccard(core_a, core_b) < MIN_CORE_SIMILARITY:
            return 0.0
        return whole

    def _is_cjk(self, row: int) -> bool:
        start, end = self.tokens.bounds[row], self.tokens.bounds[row + 1]
        return bool(2 * np.count_nonzero(self.tokens.is_cjk[start:end]) > end - start)

    def _grams(self, row: int) -> Hashes:
        start, end = self.grams.bounds[row], self.grams.bounds[row + 1]
        return self.grams.hashes[start:end][self.is_kept[start:end]]

    def _answer(self, row: int) -> Hashes:
        start, end = self.grams.bounds[row], self.grams.bounds[row + 1]
        return self.grams.hashes[start:end][self.grams.is_answer[start:end]]

    def _num_said(self, row: int) -> int:
        start, end = self.tokens.bounds[row], self.tokens.bounds[row + 1]
        return int(np.count_nonzero(self.tokens.is_answer[start:end]))

    def _question(self, row: int) -> Hashes:
        start, end = self.tokens.bounds[row], self.tokens.bounds[row + 1]
        return self.tokens.hashes[start:end][~self.tokens.is_answer[start:end]]


def _jaccard(a: Hashes, b: Hashes) -> float:
    """Shared over all; two empty sets are alike."""
    a, b = np.unique(a), np.unique(b)
    num_both = len(np.intersect1d(a, b, assume_unique=True))
    num_all = len(a) + len(b) - num_both
    return num_both / num_all if num_all else 1.0


def _cores(a: Hashes, b: Hashes) -> tuple[Hashes, Hashes]:
    """What is left of two token sequences after their common beginning and end."""
    start = _num_equal(a, b)
    a, b = a[start:], b[start:]
    end = _num_equal(a[::-1], b[::-1])
    return a[: len(a) - end], b[: len(b) - end]


def _num_equal(a: Hashes, b: Hashes) -> int:
    shorter = min(len(a), len(b))
    differs = a[:shorter] != b[:shorter]
    return int(differs.argmax()) if differs.any() else shorter


class Lookup:
    """Is a hash among these?  A table of one byte per 21-bit prefix answers no for nearly all, a search the rest."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = np.unique(hashes)
        self._table = np.zeros(1 << 21, bool)
        self._table[self.hashes >> np.uint64(43)] = True

    def may_have(self, hashes: Hashes) -> Flags:
        """Which of them are probably among ours: all that are, and by chance one in a thousand of the others."""
        return self._table[hashes >> np.uint64(43)]

    def has(self, hashes: Hashes) -> Flags:
        """Which of them are among ours."""
        found = self.may_have(hashes)
        likely = np.flatnonzero(found)
        if len(likely):
            places = np.minimum(np.searchsorted(self.hashes, hashes[likely]), len(self.hashes) - 1)
            found[likely] = self.hashes[places] == hashes[likely]
        return found


def boilerplate_of(grams: Grams) -> Hashes:
    """The n-grams outside of answers that twenty rows or more have: those of shared preambles, and usual ones."""
    rows = np.repeat(np.arange(len(grams.bounds) - 1), np.diff(grams.bounds))[~grams.is_answer]
    hashes = grams.hashes[~grams.is_answer]
    order = np.lexsort((rows, hashes))
    hashes, rows = hashes[order], rows[order]
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1])
    values, counts = np.unique(hashes[is_new], return_counts=True)
    return values[counts >= MIN_BOILERPLATE_ROWS]


def own_words(grams: Grams, boilerplate: Lookup) -> Flags:
    """Which n-grams are a row's own (G): not part of a long run of boilerplate outside of the answer.

    A single usual n-gram stays; twenty-four in a row are a preamble.
    """
    # In a run of so many, a few that are usual by chance do not matter.
    usual = boilerplate.may_have(grams.hashes) & ~grams.is_answer
    starts = grams.bounds[:-1][grams.bounds[:-1] < len(usual)]
    is_new_run = np.ones(len(usual), bool)
    is_new_run[1:] = usual[1:] != usual[:-1]
    is_new_run[starts] = True
    run = np.cumsum(is_new_run) - 1
    own = ~(usual & (np.bincount(run, minlength=1)[run] >= MIN_BOILERPLATE_RUN))
    running = np.concatenate(([0], np.cumsum(own, dtype=np.int64)))
    num_own = running[grams.bounds[1:]] - running[grams.bounds[:-1]]
    # A row that is nothing but boilerplate is compared by all of it.
    return own | np.repeat(num_own == 0, np.diff(grams.bounds))
