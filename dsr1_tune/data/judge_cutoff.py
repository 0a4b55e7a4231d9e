"""From scores to decisions: how well a score tells good rows from bad ones, and where to cut.

Nobody says which rows of a file are bad. But bad ones can be made of the file itself, by giving questions the answers
of others or by shuffling characters. With `seen` rows of which an unknown part is bad, and `bad` rows made so, all
that is needed can be estimated: seen = (1 - share) * good + share * bad. Higher scores are better throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MIN_ROWS = 100
"""With fewer rows of a language nothing can be calibrated."""
MIN_AUC = 0.6
"""A score whose AUC may be as low as this is no better than chance, for our purposes, and is switched off."""


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The chance that a good row has a higher score than a bad one; ties count half, nan is left out."""
    good, bad = good[~np.isnan(good)], np.sort(bad[~np.isnan(bad)])
    if not len(good) or not len(bad):
        return math.nan
    below = np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")
    return float(below.mean() / 2 / len(bad))


def auc_floor(value: float, num_good: int, num_bad: int) -> float:
    """The lower end of the 95 % interval of an AUC (Hanley and McNeil 1982)."""
    if not 0 <= value <= 1 or min(num_good, num_bad) < 2:
        return 0.0
    both, twice = value / (2 - value), 2 * value * value / (1 + value)
    spread = value * (1 - value) + (num_good - 1) * (both - value**2) + (num_bad - 1) * (twice - value**2)
    return value - 1.96 * math.sqrt(max(spread, 0.0) / (num_good * num_bad))


def share_of_bad(seen: np.ndarray, bad: np.ndarray) -> float:
    """Which part of the `seen` rows is bad, as far as can be told.

    Below any mark, the seen rows are at least the bad ones among them: each mark gives an upper bound. The lower the
    mark, the fewer good rows spoil it, and the fewer rows it hangs on; the mark is taken that bounds most safely.
    """
    seen, bad = np.sort(seen[~np.isnan(seen)]), np.sort(bad[~np.isnan(bad)])
    if not len(seen) or not len(bad):
        return 0.0
    marks = np.quantile(bad, _PARTS)
    counts = np.searchsorted(seen, marks, "right")
    # With ties, more than the part asked for may lie at a mark.
    parts = np.searchsorted(bad, marks, "right") / len(bad) * len(seen)
    shares, errors = counts / parts, np.sqrt(counts + 1) / parts
    return float(min(shares[np.argmin(shares + 3 * errors)], 1.0))


_PARTS = np.array([0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])


def auc_of_good(value: float, share_bad: float) -> float:
    """The AUC of the good rows alone, from that of rows of which a share is bad."""
    return min((value - share_bad / 2) / max(1 - share_bad, 1e-9), 1.0)


@dataclass(frozen=True)
class Cut:
    """Rows below `value` are dropped; what that is expected to do, as shares.

    `share_bad` of the rows are bad, of which `found` are dropped, and `lost` of the good ones with them.
    """

    value: float
    share_bad: float
    found: float
    lost: float


def cut_at(value: float, seen: np.ndarray, bad: np.ndarray) -> Cut:
    """What a given cut-off would do."""
    seen, bad = seen[~np.isnan(seen)], bad[~np.isnan(bad)]
    share = share_of_bad(seen, bad)
    below, found = float((seen < value).mean()) if len(seen) else 0.0, float((bad < value).mean()) if len(bad) else 0.0
    lost = max(0.0, below - share * found) / max(1 - share, 1e-9)
    return Cut(value, share, found, min(lost, 1.0))


def find_cut(seen: np.ndarray, bad: np.ndarray, max_lost: float) -> Cut | None:
    """The highest cut-off below which at most `max_lost` of the good rows are, and more bad rows than good ones.

    None where no cut-off does that: the file has too few bad rows, or the score tells too little.
    """
    seen, bad = np.sort(seen[~np.isnan(seen)]), np.sort(bad[~np.isnan(bad)])
    share = share_of_bad(seen, bad)
    marks = np.unique(seen)
    below = np.searchsorted(seen, marks, "left") / len(seen)
    found = np.searchsorted(bad, marks, "left") / len(bad)
    lost = np.maximum(below - share * found, 0) / max(1 - share, 1e-9)
    fits = (below > 0) & (lost <= max_lost) & (share * found >= 0.5 * below)
    if not fits.any():
        return None
    place = int(np.flatnonzero(fits)[-1])
    return Cut(float(marks[place]), share, float(found[place]), float(lost[place]))


@dataclass(frozen=True)
class Blend:
    """Several scores as one: the log-odds that a row is good rather than bad, by logistic regression."""

    means: np.ndarray
    spreads: np.ndarray
    weights: np.ndarray
    constant: float

    def __call__(self, scores_NS: np.ndarray) -> np.ndarray:
        """[N] log-odds; nan where a score is."""
        odds: np.ndarray = (scores_NS - self.means) / self.spreads @ self.weights + self.constant
        return odds

    @staticmethod
    def fit(good_NS: np.ndarray, bad_NS: np.ndarray) -> Blend:
        """Weigh the scores so that good and bad rows, taken as equally many, come apart best (ridge, Newton)."""
        rows = np.concatenate([good_NS, bad_NS])
        is_good = np.concatenate([np.ones(len(good_NS)), np.zeros(len(bad_NS))])
        whole = ~np.isnan(rows).any(axis=1)
        rows, is_good = rows[whole], is_good[whole]
        means, spreads = rows.mean(axis=0), rows.std(axis=0) + 1e-9
        X = np.column_stack([(rows - means) / spreads, np.ones(len(rows))])
        importance = np.where(is_good == 1, 0.5 / is_good.mean(), 0.5 / (1 - is_good.mean()))
        ridge = np.diag([1.0] * rows.shape[1] + [1e-6])
        weights = np.zeros(X.shape[1])
        for _ in range(50):
            chance = 1 / (1 + np.exp(-np.clip(X @ weights, -30, 30)))
            slope = X.T @ (importance * (is_good - chance)) - ridge @ weights
            bend = (X * (importance * chance * (1 - chance))[:, None]).T @ X + ridge
            step = np.linalg.solve(bend, slope)
            weights += step
            if np.abs(step).max() < 1e-8:
                break
        return Blend(means, spreads, weights[:-1], float(weights[-1]))
