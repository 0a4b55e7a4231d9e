"""Which rows are held out for evaluation?  A share of every kind of row, and never one with a near copy in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.dedup.ngrams import Flags, Ints, mixed


@dataclass(frozen=True)
class Stratum:
    """Rows of one file, language and length, and how many of them are held out."""

    name: str
    num_train: int
    num_eval: int


def hold_out(strata: Ints, groups: Ints, share: float, seed: int) -> Flags:
    """Which rows (N) are held out: of every stratum about `share`, drawn by `seed`; a group stays on one side.

    Whether a row is drawn depends on its group's hash, not on how many rows stand before it. At least one row is held
    out where there are two groups and the share is above 0, and at least one is trained on.
    """
    held_out = np.zeros(len(strata), bool)
    if share <= 0 or len(strata) < 2:
        return held_out
    leaders, first, group = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(group)
    draw = mixed(leaders.astype(np.uint64) + mixed(np.array([seed], np.uint64)))
    chosen = np.zeros(len(leaders), bool)
    owed = 0.0
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata[first] == stratum)
        members = members[np.argsort(draw[members], kind="stable")]
        # What rounding owes one stratum, the next one pays.
        owed += share * sizes[members].sum()
        for member in members.tolist():
            if owed < 0.5:
                break
            if sizes[member] <= owed + 0.5:
                chosen[member] = True
                owed -= sizes[member]
    if len(leaders) > 1:
        # The smallest group, of several the one drawn first.
        smallest = np.lexsort((draw, sizes))[0]
        if not chosen.any():
            chosen[smallest] = True
        if chosen.all():
            chosen[smallest] = False
    return chosen[group]


def length_bands(chars: Ints, num_bands: int = 3) -> npt.NDArray[np.uint8]:
    """Short, middle and long rows (N), of each as many."""
    if not len(chars):
        return np.zeros(0, np.uint8)
    edges = np.quantile(chars, np.arange(1, num_bands) / num_bands)
    return np.searchsorted(edges, chars, side="right").astype(np.uint8)


def count_strata(names: Sequence[str], strata: Ints, is_train: Flags, is_eval: Flags) -> list[Stratum]:
    """How many rows of each stratum are trained on and held out; `names` are the strata's, by number."""
    train = np.bincount(strata[is_train], minlength=len(names)).tolist()
    held_out = np.bincount(strata[is_eval], minlength=len(names)).tolist()
    return [Stratum(*one) for one in zip(names, train, held_out, strict=True) if one[1] or one[2]]
