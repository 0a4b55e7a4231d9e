"""Which rows say nearly the same?  MinHash bands propose pairs, the texts themselves decide.

Memory: a band at a time, 32 bytes a row; texts and sketches are read from disk for the proposed pairs only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.dedup import ngrams
from dsr1_tune.data.dedup.ngrams import DIGIT, NUM_BANDS, Flags, Grams, Hashes, Ints, Tokens
from dsr1_tune.data.output import Turns
from dsr1_tune.text.composed import composed

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
MIN_QUESTION_SIMILARITY = 0.8
BATCH_PAIRS = 250
"""Few enough that the n-grams of their rows need little memory."""
BATCH_BYTES = 4 << 20
SKETCHED_PAIRS = 4000
WAITING_PAIRS = 1 << 18
LEARNED_ROWS = 2000
"""So many rows at the start of each file show which preambles its rows share, and how their answers end."""
MIN_BOILERPLATE_ROWS = 20
MIN_BOILERPLATE_RUN = 16
_WORD = re.compile(r"\w+")


def likely_pairs(
    bands: Callable[[int], Hashes], sketches: Callable[[Ints], npt.NDArray[np.uint8]], rows: Ints, similarity: float
) -> Pairs:
    """Pairs of `rows` that are equal in a band and whose sketches agree about as much as similar rows' do.

    `bands(b)` are all rows' hashes (N) in band b; `sketches(rows)` reads (R, 120) bytes of rows in ascending order.
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


def near_pairs(
    bands: Callable[[int], Hashes],
    sketches: Callable[[Ints], npt.NDArray[np.uint8]],
    rows: Ints,
    sorts: npt.NDArray[Any],
    similarity: float,
    compare: Callable[[Pairs], Verified],
) -> Verified:
    """The near-duplicates among `rows`; `compare` verifies likely pairs, the other arguments are `likely_pairs`'.

    Only rows that agree in `sorts` (N, ...), their kind and the functions that may be called, can say the same.
    """
    pairs = likely_pairs(bands, sketches, rows, similarity)
    return compare(pairs[(sorts[pairs[:, 0]] == sorts[pairs[:, 1]]).all(axis=1)])


def batches(pairs: Pairs, sizes: Ints) -> Iterator[Pairs]:
    """A few hundred pairs at a time, and fewer of long rows; `sizes` (N) are the rows' lengths."""
    weight = np.cumsum(sizes[pairs[:, 0]] + sizes[pairs[:, 1]], dtype=np.int64)
    number = np.arange(len(pairs)) // BATCH_PAIRS + weight // BATCH_BYTES
    yield from np.split(pairs, np.flatnonzero(np.diff(number)) + 1) if len(pairs) else []


def _proposed(bands: Callable[[int], Hashes], rows: Ints) -> Iterator[Pairs]:
    """Pairs that are equal in a band; the same one may come from several."""
    for band in range(NUM_BANDS):
        values = bands(band)[rows]
        # Four bytes a number: these arrays are what the memory of a large run is.
        order = np.argsort(values, kind="stable").astype(np.int32)
        values = values[order]
        is_first = np.concatenate(([True], values[1:] != values[:-1]))
        del values
        starts = np.flatnonzero(is_first).astype(np.int32)[np.cumsum(is_first, dtype=np.int32) - 1]
        places = np.arange(len(order), dtype=np.int32)
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
    for start in range(0, len(pairs), SKETCHED_PAIRS):
        a, b = numbers[start : start + SKETCHED_PAIRS].T
        agreement[start : start + SKETCHED_PAIRS] = (read[a] == read[b]).mean(axis=1)
    return pairs[agreement >= similarity**WORD_EXPONENT - SKETCH_SLACK]


@dataclass(frozen=True)
class Verified:
    """The pairs that are near-duplicates, and how similar they are (P)."""

    pairs: Pairs
    similarity: npt.NDArray[np.float64]

    @classmethod
    def together(cls, parts: Sequence[Verified]) -> Verified:
        """The pairs of all parts."""
        if not parts:
            return cls(np.zeros((0, 2), np.int64), np.zeros(0))
        return cls(np.concatenate([p.pairs for p in parts]), np.concatenate([p.similarity for p in parts]))


def verify(pairs: Pairs, rows: Ints, turns: Sequence[Turns], similarity: float, boilerplate: Lookup) -> Verified:
    """Compare the texts of each pair; `turns` are those of `rows`, which are all of the pairs' in ascending order.

    Two rows are near-duplicates if they share enough of their n-grams, if their answers are alike as well, if the
    same numbers stand in them, and if what is left of the questions after their common beginning and end
    is alike: with a long text before it, two different questions share nearly all n-grams. Where the answers are
    short, nothing may be left.
    """
    compared = _Compared.all_of(turns, boilerplate)
    places = np.searchsorted(rows, pairs).tolist()
    values = np.array([compared[a].similarity(compared[b], similarity) for a, b in places], np.float64)
    return Verified(pairs[values > 0], values[values > 0])


class _Compared:
    """A row taken apart for comparison: its own n-grams, its answer's, and its question's tokens and numbers."""

    def __init__(self, turns: Turns, row: int, found: Tokens, pieces: Grams, own: Flags) -> None:
        self._turns = turns
        here = slice(pieces.bounds[row], pieces.bounds[row + 1])
        self._hashes, self._own, self._is_answer = pieces.hashes[here], own[here], pieces.is_answer[here]
        said = slice(found.bounds[row], found.bounds[row + 1])
        is_asked = ~found.is_answer[said]
        self.question = found.hashes[said][is_asked]
        # Tokens that begin with a digit: 5, 3.5, 5mg. In questions and in answers: 500 mg are not 5000.
        self.numbers = found.hashes[said][found.scripts[said] == DIGIT].tolist()
        self.num_said = len(is_asked) - len(self.question)
        self.is_cjk = bool(2 * np.count_nonzero(found.is_cjk[said]) > len(is_asked))

    @classmethod
    def all_of(cls, rows: Sequence[Turns], boilerplate: Lookup) -> list[_Compared]:
        """Take many rows apart at once."""
        found = ngrams.tokens(ngrams.normalise(rows))
        pieces = ngrams.grams_and_words(found)
        own = own_words(pieces, boilerplate)
        return [cls(turns, row, found, pieces, own) for row, turns in enumerate(rows)]

    @cached_property
    def grams(self) -> Hashes:
        """Its own n-grams and words, each once."""
        return _each_once(self._hashes[self._own])

    @cached_property
    def answer(self) -> Hashes:
        """Its answer's, each once."""
        return _each_once(self._hashes[self._is_answer])

    def similarity(self, other: _Compared, least: float) -> float:
        """How similar two rows are, or 0 where they are no near-duplicates.

        The Jaccard index of their n-grams; of words, which an edit changes more of, brought to the scale of characters.
        """
        if self.numbers != other.numbers or not self._asks_the_same(other):
            return 0.0
        whole = _jaccard(self.grams, other.grams)
        if not self.is_cjk:
            whole **= 1 / WORD_EXPONENT
        if whole < least or _jaccard(self.answer, other.answer) < MIN_ANSWER_SIMILARITY:
            return 0.0
        return whole

    def _asks_the_same(self, other: _Compared) -> bool:
        """Whether what is left of the questions after their common beginning and end may mean the same."""
        core, others = _cores(self.question, other.question)
        short, long = sorted((core.tobytes(), others.tobytes()), key=len)
        if short in long:
            # Nothing is replaced, at most put around it: "Excuse me, ... Thank you."
            return True
        if self._is_misspelt(other):
            return True
        # "Is it safe to take amoxicillin?" and "... ibuprofen?" may both be answered by a yes.
        if min(self.num_said, other.num_said) <= SHORT_ANSWER_TOKENS:
            return False
        # Nor does a long answer make one question of two short ones.
        if _jaccard(_each_once(self.question), _each_once(other.question)) < MIN_QUESTION_SIMILARITY:
            return False
        if min(len(core), len(others)) < MIN_CORE_TOKENS:
            return True
        return _jaccard(_each_once(core), _each_once(others)) >= MIN_CORE_SIMILARITY

    def _is_misspelt(self, other: _Compared) -> bool:
        """Whether the questions differ in the order of a word's letters only: other slips may name another drug."""
        mine, theirs = (
            _WORD.findall(composed(" ".join(text for role, text in row._turns if role != "assistant")).lower())
            for row in (self, other)
        )
        differ = [(a, b) for a, b in zip(mine, theirs, strict=False) if a != b]
        return len(mine) == len(theirs) and all(len(a) > 3 and sorted(a) == sorted(b) for a, b in differ)


def _each_once(hashes: Hashes) -> Hashes:
    """The hashes as a set, in order; on a few hundred np.unique takes twice as long."""
    ordered = np.sort(hashes)
    is_new = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    return ordered[is_new]


def _jaccard(a: Hashes, b: Hashes) -> float:
    """Shared over all of two sets, in each of which a hash stands once; two empty sets are alike."""
    together = np.concatenate((a, b))
    together.sort()
    num_both = int(np.count_nonzero(together[1:] == together[:-1]))
    num_all = len(together) - num_both
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
    """The n-grams of preambles: those outside of answers that twenty rows or more have, sixteen of them in a row."""
    rows = np.repeat(np.arange(len(grams.bounds) - 1), np.diff(grams.bounds))[~grams.is_answer]
    hashes = grams.hashes[~grams.is_answer]
    order = np.lexsort((rows, hashes))
    ordered, rows = hashes[order], rows[order]
    is_new = np.ones(len(hashes), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]) | (rows[1:] != rows[:-1])
    values, counts = np.unique(ordered[is_new], return_counts=True)
    usual = Lookup(values[counts >= MIN_BOILERPLATE_ROWS])
    return np.unique(grams.hashes[_in_long_runs(grams, usual)])


def own_words(grams: Grams, boilerplate: Lookup) -> Flags:
    """Which n-grams are a row's own (G): not part of a long run of boilerplate outside of the answer.

    A single usual n-gram stays; sixteen in a row are a preamble.
    """
    if not len(boilerplate.hashes):
        return np.ones(len(grams.hashes), bool)
    own = ~_in_long_runs(grams, boilerplate)
    running = np.concatenate(([0], np.cumsum(own, dtype=np.int64)))
    num_own = running[grams.bounds[1:]] - running[grams.bounds[:-1]]
    # A row that is nothing but boilerplate is compared by all of it.
    return own | np.repeat(num_own == 0, np.diff(grams.bounds))


def _in_long_runs(grams: Grams, usual: Lookup) -> Flags:
    """Which n-grams (G) outside of answers stand among sixteen usual ones in a row."""
    # In a run of so many, a few that are usual by chance do not matter.
    found = usual.may_have(grams.hashes) & ~grams.is_answer
    starts = grams.bounds[:-1][grams.bounds[:-1] < len(found)]
    is_new_run = np.ones(len(found), bool)
    is_new_run[1:] = found[1:] != found[:-1]
    is_new_run[starts] = True
    run = np.cumsum(is_new_run) - 1
    return found & (np.bincount(run, minlength=1)[run] >= MIN_BOILERPLATE_RUN)
