"""Which rows are held out for evaluation?  A share of every kind of row, and never one with a near copy in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dsr1_tune.data.dedup.languages import LANGUAGES
from dsr1_tune.data.dedup.ngrams import Flags, Ints, mixed
from dsr1_tune.data.dedup.row_hashes import Alike
from dsr1_tune.data.record import Row


@dataclass(frozen=True)
class Stratum:
    """Rows of one file, language and length, and how many of them are held out."""

    name: str
    num_train: int
    num_eval: int


@dataclass(frozen=True)
class Split:
    """Which rows (N) are held out, and how many of each stratum are."""

    is_held_out: Flags
    strata: list[Stratum]


def split_rows(rows: Sequence[Row], share: float, seed: int) -> Split:
    """Split rows in memory as `data clean` does; rows that ask the same or are near copies stay on one side."""
    if share <= 0 or len(rows) < 2:
        return Split(np.zeros(len(rows), bool), [])
    alike = Alike.of(rows)
    files = list(dict.fromkeys(row.place.file for row in rows))
    number = {file: place for place, file in enumerate(files)}
    by_row = np.array([number[row.place.file] for row in rows], np.int64)
    names, strata = strata_of(files, by_row, alike.languages, alike.num_chars)
    is_held_out = hold_out(strata, alike.groups, share, seed)
    return Split(is_held_out, count_strata(names, strata, ~is_held_out, is_held_out))


def strata_of(
    files: Sequence[str], by_row: Ints, languages: npt.NDArray[np.uint8], num_chars: Ints
) -> tuple[list[str], Ints]:
    """Rows (N) of the same file, language and length: the strata's names, and each row's number among them."""
    keys = (by_row * len(LANGUAGES) + languages) * 3 + length_bands(num_chars)
    found, strata = np.unique(keys, return_inverse=True)
    sizes = ("short", "middle", "long")
    names = [f"{files[k // 3 // len(LANGUAGES)]}, {LANGUAGES[k // 3 % len(LANGUAGES)]}, {sizes[k % 3]}" for k in found]
    return names, strata


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


def split_section(num_train: int, num_lines: int, num_eval: int, strata: Sequence[Stratum]) -> dict[str, Any]:
    """What report.json says of a split; `num_lines` are the training rows as often as their files' weights say."""
    return {
        "num_train": num_train,
        "num_train_lines": num_lines,
        "num_eval": num_eval,
        "strata": [asdict(stratum) for stratum in strata],
    }
