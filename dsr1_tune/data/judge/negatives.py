"""Bad rows made of good ones: what a judge's scores look like on answers that do not fit, and on answers that are none.

A few rows of each language stand for all. Each answer is put under other rows' questions, and its characters and
words are shuffled; what a score then gives is what it would give to such faults in the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.judge.score_cache import Pair, digest

Ints = npt.NDArray[np.integer]

NUM_ROWS = 1500
NUM_OTHERS = 2
"""Other questions for each answer: the second one is what the first is contrasted with."""
_MIN_BAND = 20
_MAX_CHARS = 1000
_UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_PIECES = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]+|\s+")


@dataclass(frozen=True)
class Reference:
    """Rows (N) of one language that stand for all of it, and for each of them other rows with other questions."""

    rows: Ints
    others: Ints
    pairs: list[Pair]
    questions: list[list[str]]

    def __len__(self) -> int:
        return len(self.rows)

    def wrong(self, which: int) -> list[Pair]:
        """The answers of all rows, each under the first (0) or second (1) of its other questions."""
        return [self.wrong_of(place)[which] for place in range(len(self))]

    def wrong_of(self, place: int) -> list[Pair]:
        """The answer of one row under each of its other questions."""
        return [(question, self.pairs[place][1]) for question in self.questions[place]]

    def shuffled(self, shuffle: Callable[[str, np.random.Generator], str], seed: int) -> list[Pair]:
        """The rows with their answers shuffled, each in its own way."""
        return [
            (question, shuffle(answer, np.random.default_rng([seed, int(row)])))
            for row, (question, answer) in zip(self.rows, self.pairs, strict=True)
        ]


def draw(candidates: Ints, texts: Callable[[Ints], list[Pair]], seed: int) -> Reference:
    """Up to NUM_ROWS of the candidates at random, each with NUM_OTHERS whose question and answer are not its own."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(candidates)[:NUM_ROWS]
    pairs = texts(rows)
    marks = [(digest(question), digest(answer)) for question, answer in pairs]
    kept, others = [], []
    for place, (question, answer) in enumerate(marks):
        found: list[int] = []
        for other in rng.integers(len(rows), size=20).tolist():
            fits = marks[other][0] != question and marks[other][1] != answer
            if fits and all(marks[other][0] != marks[before][0] for before in found):
                found.append(other)
            if len(found) == NUM_OTHERS:
                kept.append(place)
                others.append(found)
                break
    return Reference(
        rows=rows[kept],
        others=rows[np.array(others, dtype=np.int64).reshape(-1, NUM_OTHERS)],
        pairs=[pairs[place] for place in kept],
        questions=[[pairs[other][0] for other in found] for found in others],
    )


def shuffle_characters(text: str, rng: np.random.Generator) -> str:
    """The same characters in another order."""
    return "".join(rng.permutation(list(text[:_MAX_CHARS])))


def shuffle_words(text: str, rng: np.random.Generator) -> str:
    """The same words in another order, the spaces staying where they are; pieces of two characters where none are."""
    pieces = _PIECES.findall(text[:_MAX_CHARS])
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()]
    for place, piece in zip(places, rng.permutation([pieces[place] for place in places]).tolist(), strict=True):
        pieces[place] = piece
    return "".join(pieces)


class Bands:
    """What is usual at which length: medians of rows within an octave of length, or of all where those are few."""

    def __init__(self, values: np.ndarray, lengths: np.ndarray) -> None:
        is_known = ~np.isnan(values)
        bands = _octave(lengths[is_known])
        self._all = float(np.median(values[is_known])) if is_known.any() else 0.0
        self._medians = {
            int(band): float(np.median(values[is_known][bands == band]))
            for band in np.unique(bands)
            if (bands == band).sum() >= _MIN_BAND
        }

    def usual(self, lengths: np.ndarray) -> np.ndarray:
        """[N] the median of each one's band."""
        return np.array([self._medians.get(int(band), self._all) for band in _octave(lengths)])


def _octave(lengths: np.ndarray) -> np.ndarray:
    return np.floor(np.log2(np.maximum(np.nan_to_num(lengths), 1))).astype(np.int64)
