"""The bench: the rows to judge with the scores known of them so far, how well each score tells, and their blend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dsr1_tune.config import Judge
from dsr1_tune.data.judge import lexical
from dsr1_tune.data.judge.negatives import Ints, Reference
from dsr1_tune.data.judge.score_cache import Pair
from dsr1_tune.data.judge.thresholds import MIN_AUC, MIN_ROWS, Blend, Cut, auc, auc_floor, auc_of_good, share_of_bad

Floats = npt.NDArray[np.floating]
Say = Callable[[str], None]

SCORES = ("surprise", "overlap", "cosine", "perplexity", "oddity", "ifd", "ifd_perplexity", "contrast", "fit")
LOWER_IS_BETTER = frozenset({"surprise", "perplexity", "oddity", "ifd", "ifd_perplexity"})
# ifd_perplexity says the same as ifd, and tells a little less.
PARTS = ("overlap", "cosine", "ifd", "contrast")
_RATIOS = frozenset({"perplexity", "oddity", "ifd", "ifd_perplexity", "contrast"})


class PairSource(Protocol):
    """The rows to judge, read when they are asked for."""

    def __len__(self) -> int: ...

    def texts(self, indices: Sequence[int], /) -> list[Pair]:
        """(all that stands before the answer, the answer) of these rows."""

    def languages(self) -> Sequence[str]:
        """The language of every row."""


@dataclass
class Measure:
    """One score on one language: of reference rows, and of bad ones made of them (nan: not scored), better is higher.

    `off` says why the score is not used there; `cut` is where rows are dropped.
    """

    seen: Floats
    bad: Floats
    auc: float
    off: str = ""
    cut: Cut | None = None


@dataclass
class Bench:
    """The rows on the bench and all that is known of them so far; `scores` have a place for every row of the source.

    `shuffled_surprise` is how surprising the language's words are in any order; `fit_auc` how well a row's fit tells.
    """

    pairs: PairSource
    config: Judge
    seed: int
    say: Say
    rows: Ints
    languages: dict[str, Ints]
    scores: dict[str, Floats]
    content: str = ""
    counts: lexical.Counts = field(default_factory=lexical.Counts)
    references: dict[str, Reference] = field(default_factory=dict)
    measures: dict[tuple[str, str], Measure] = field(default_factory=dict)
    shuffled_surprise: dict[str, float] = field(default_factory=dict)
    fit_auc: Floats = field(default_factory=lambda: np.zeros(0))
    notes: list[str] = field(default_factory=list)

    def texts(self, rows: Ints) -> list[Pair]:
        """The pairs of these rows, in this order; the source is read in its own order."""
        ordered, places = np.unique(rows, return_inverse=True)
        found = self.pairs.texts(ordered.tolist())
        return [found[place] for place in places.tolist()]

    def note(self, line: str) -> None:
        """Say it now and in the report, once."""
        if line not in self.notes:
            self.notes.append(line)
            self.say(f"judge: {line}")

    def is_on(self, score: str, language: str) -> bool:
        """Whether the score has been found better than chance on the language."""
        measure = self.measures.get((score, language))
        return measure is not None and not measure.off


def open_bench(pairs: PairSource, config: Judge, seed: int, say: Say) -> Bench:
    """Draw the sample and sort its rows by language, the most frequent first."""
    total = len(pairs)
    rows: Ints = np.arange(total)
    if config.sample < 1:
        rows = np.sort(np.random.default_rng(seed).permutation(total)[: max(1, round(total * config.sample))])
    names, codes = np.unique(np.asarray(pairs.languages(), dtype=str), return_inverse=True)
    of = {str(name): rows[codes[rows] == code] for code, name in enumerate(names)}
    languages = dict(sorted(((name, of[name]) for name in of if len(of[name])), key=lambda item: -len(item[1])))
    scores = {name: np.full(total, np.nan, np.float32) for name in SCORES}
    return Bench(pairs, config, seed, say, rows, languages, scores, fit_auc=np.zeros(total, np.float32))


def measure(bench: Bench, score: str, language: str, seen: Floats, bad: Floats) -> None:
    """Note how well the score tells reference rows from bad ones, and switch it off where it hardly does."""
    seen, bad = as_good(score, seen), as_good(score, bad)
    num_seen = int((~np.isnan(seen)).sum())
    num_bad = int((~np.isnan(bad).reshape(len(seen), -1 if len(seen) else 1)).any(axis=1).sum())
    value = auc(seen, bad.reshape(-1))
    measure = bench.measures[score, language] = Measure(seen, bad, value)
    if min(num_seen, num_bad) < MIN_ROWS:
        measure.off = f"only {min(num_seen, num_bad)} rows to try it on, {MIN_ROWS} are needed"
    elif (floor := auc_floor(value, num_seen, num_bad)) <= MIN_AUC:
        measure.off = f"no better than chance: AUC {value:.2f}, perhaps only {floor:.2f}"
    if measure.off:
        bench.note(f"{score} is not used on {language}: {measure.off}")


def blend(bench: Bench, language: str) -> None:
    """Set `fit` from the scores that are switched on and known of a row: logistic regression on the reference rows.

    A row gets the blend of all the scores that it has. How well `fit` tells is measured on the blend without the
    language model, which has looked at few reference rows; log-odds of different blends compare.
    """
    on = tuple(part for part in PARTS if bench.is_on(part, language))
    plain = tuple(part for part in on if part in ("overlap", "cosine"))
    sets = [on, plain, tuple(part for part in on if part != "cosine"), tuple(part for part in on if part == "overlap")]
    rows = bench.languages[language]
    fit, told = np.full(len(rows), np.nan), np.zeros(len(rows))
    for names in dict.fromkeys(names for names in sets if names):
        seen, bad = (_columns(bench, language, names, side) for side in ("seen", "bad"))
        blended = Blend.fit(seen, bad)
        seen_fit, bad_fit = blended(seen), blended(bad)
        value = auc_of_good(auc(seen_fit, bad_fit), share_of_bad(seen_fit, bad_fit))
        found = blended(np.stack([as_good(name, bench.scores[name][rows]) for name in names], axis=1))
        told = np.where(np.isnan(fit) & ~np.isnan(found), value, told)
        fit = np.where(np.isnan(fit), found, fit)
        if names == (plain if "cosine" in plain else on):
            measure(bench, "fit", language, seen_fit, bad_fit.reshape(len(seen), -1))
    bench.scores["fit"][rows], bench.fit_auc[rows] = fit, told


def _columns(bench: Bench, language: str, names: Sequence[str], side: str) -> Floats:
    """[N, S] the parts of the reference rows, or of the bad ones made of them (two for each)."""
    return np.stack([getattr(bench.measures[name, language], side).reshape(-1) for name in names], axis=1)


def as_good(score: str, values: Floats) -> Floats:
    """A score such that better is higher and ratios add up; no words at all is no shared word."""
    values = np.asarray(values, float)
    if score == "overlap":
        values = np.nan_to_num(values, nan=0.0)
    if score in _RATIOS:
        values = np.log(np.maximum(values, 1e-6))
    return -values if score in LOWER_IS_BETTER else values


def as_score(score: str, good: float) -> float:
    """`as_good` undone."""
    value = -good if score in LOWER_IS_BETTER else good
    return float(np.exp(value)) if score in _RATIOS else float(value)
