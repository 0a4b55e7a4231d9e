"""Held-out rows: a share of every stratum, groups kept together, drawn by the seed."""

from __future__ import annotations

import numpy as np
import pytest

from dsr1_tune.data.record import Message, Place, Record
from dsr1_tune.data.split import Stratum, count_strata, hold_out, length_bands, split_rows, split_section


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_every_stratum_gives_its_share(share: float) -> None:
    strata = np.repeat([0, 1, 2], [1000, 300, 50])
    held = hold_out(strata, np.arange(1350), share, seed=1)
    for stratum, size in enumerate((1000, 300, 50)):
        assert abs(held[strata == stratum].sum() - share * size) <= 1
    lines = count_strata(["a", "b", "c"], strata, ~held, held)
    assert [line.num_train + line.num_eval for line in lines] == [1000, 300, 50]


def test_many_small_strata_give_their_share_together() -> None:
    held = hold_out(np.arange(200) // 3, np.arange(200), 0.1, seed=1)
    assert abs(held.sum() - 20) <= 1


def test_groups_stay_together() -> None:
    groups = np.random.default_rng(0).integers(0, 150, 500)
    held = hold_out(np.zeros(500, np.int64), groups, 0.2, seed=3)
    assert not set(groups[held]) & set(groups[~held])
    assert 80 <= held.sum() <= 110


def test_the_seed_draws() -> None:
    strata, groups = np.zeros(1000, np.int64), np.arange(1000)
    same = hold_out(strata, groups, 0.1, 1), hold_out(strata, groups, 0.1, 1)
    assert (same[0] == same[1]).all()
    assert (same[0] != hold_out(strata, groups, 0.1, 2)).any()


@pytest.mark.parametrize(("num_rows", "num_held"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_few_rows(num_rows: int, num_held: int) -> None:
    for seed in range(5):
        held = hold_out(np.zeros(num_rows, np.int64), np.arange(num_rows), 0.1, seed)
        assert held.sum() == num_held
    assert hold_out(np.zeros(num_rows, np.int64), np.arange(num_rows), 0.0, 1).sum() == 0
    assert hold_out(np.zeros(num_rows, np.int64), np.arange(num_rows), 0.99, 1).sum() == max(0, num_rows - 1)
    # One group cannot be split.
    assert hold_out(np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64), 0.5, 1).sum() in (0, num_rows)


def test_length_bands() -> None:
    assert np.bincount(length_bands(np.arange(300))).tolist() == [100, 100, 100]
    assert length_bands(np.zeros(0, np.int64)).tolist() == []


def test_hold_out_never_takes_a_huge_group_whole() -> None:
    groups = np.array([0] * 999 + [1])
    for seed in range(20):
        assert hold_out(np.zeros(1000, np.int64), groups, 0.1, seed).sum() == 1


def records(number: int) -> list[Record]:
    """Rows of which no two are alike: other numbers make other questions."""
    return [
        Record((Message("user", f"Q{index}"), Message("assistant", f"A{index}")), Place("a", index + 1, index))
        for index in range(number)
    ]


@pytest.mark.parametrize(
    ("number", "share", "held_out"),
    [(0, 0.1, 0), (1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (20, 0.1, 2), (20, 0.0, 0), (3, 0.99, 2)],
)
def test_split_rows_holds_out_the_share(number: int, share: float, held_out: int) -> None:
    assert split_rows(records(number), share, seed=1).is_held_out.sum() == held_out


def test_split_rows_draws_by_the_seed() -> None:
    rows = records(100)
    one, again, other = (split_rows(rows, 0.1, seed).is_held_out.tolist() for seed in (1, 1, 2))
    assert one == again != other and sum(one) == 10


def test_split_section_counts_rows_lines_and_strata() -> None:
    section = split_section(8, 16, 2, [Stratum("a, latin, short", 8, 2)])
    assert section == {
        "num_train": 8,
        "num_train_lines": 16,
        "num_eval": 2,
        "strata": [{"name": "a, latin, short", "num_train": 8, "num_eval": 2}],
    }
