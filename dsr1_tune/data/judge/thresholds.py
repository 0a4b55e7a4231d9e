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
# A ratio within this factor of the base is taken for the base: small files scatter.
_ROUGHLY = 1.2


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
    """Which part of the `seen` rows is bad: how many of them there are for each bad one, where bad ones lie."""
    steps = _Steps.of(seen, bad)
    flat = steps.ratio <= _ROUGHLY * steps.base
    return float(min(steps.seen[flat].sum() / max(steps.bad[flat].sum(), 1e-9), 1.0))


@dataclass(frozen=True)
class _Steps:
    """The shares of seen and bad rows in K steps of the score, from low to high, and their ratio, which only rises.

    Where only bad rows lie, the ratio is the share of bad rows; good rows raise it further up. `base` is the ratio
    among the lowest rows; a quarter of the bad ones tells it, for the lower, the fewer good rows are among them.
    """

    upper: np.ndarray
    seen: np.ndarray
    bad: np.ndarray
    ratio: np.ndarray
    base: float

    @staticmethod
    def of(seen: np.ndarray, bad: np.ndarray) -> _Steps:
        seen, bad = np.sort(seen[~np.isnan(seen)]), np.sort(bad[~np.isnan(bad)])
        if not len(seen) or not len(bad):
            nothing = np.zeros(0)
            return _Steps(nothing, nothing, nothing, nothing, 0.0)
        upper = np.unique(np.quantile(bad, np.linspace(0, 1, max(4, min(50, len(bad) // 10)) + 1)[1:]))
        shares = [np.diff(np.searchsorted(side, upper, "right"), prepend=0) / len(side) for side in (seen, bad)]
        ratio = _rising(shares[0] / shares[1], shares[1])
        base = ratio[np.searchsorted(np.cumsum(shares[1]), 0.25)]
        return _Steps(upper, shares[0], shares[1], ratio, float(base))


def _rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rising steps nearest to the values (isotonic regression): neighbours that fall are averaged."""
    blocks: list[list[float]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            value, weight, count = blocks.pop()
            before = blocks[-1]
            whole = before[1] + weight
            blocks[-1] = [(before[0] * before[1] + value * weight) / whole, whole, before[2] + count]
    return np.concatenate([np.full(int(count), value) for value, _, count in blocks])


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
    """The highest cut-off at which a row is twice as likely bad as good, and at most `max_lost` good ones are lost.

    None where no cut-off does that: the file has too few bad rows, or the score tells too little.
    """
    steps = _Steps.of(seen, bad)
    if steps.base <= 0:
        return None
    lost = np.cumsum(steps.seen * (1 - np.minimum(_ROUGHLY * steps.base / np.maximum(steps.ratio, 1e-12), 1)))
    fits = (steps.ratio <= 1.5 * steps.base) & (lost <= max_lost)
    if not fits[0]:
        return None
    last = len(fits) - 1 if fits.all() else int(np.argmin(fits)) - 1
    share, found = share_of_bad(seen, bad), steps.bad[: last + 1].sum()
    good = max(steps.seen[: last + 1].sum() - share * found, 0.0) / max(1 - share, 1e-9)
    value = np.nextafter(steps.upper[last], np.inf)
    return Cut(float(value), share, float(found), float(good))


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
