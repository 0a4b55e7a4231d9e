"""Examples are put together whole, none is lost, and the sequences are nearly full."""

from __future__ import annotations

import random
import time

import pytest

from dsr1_tune.data.encode.example import IGNORED, Example
from dsr1_tune.data.encode.packing import fill, pack
from dsr1_tune.data.record import Message, Place, Record

RECORD = Record((Message("user", "Q"), Message("assistant", "A")), Place("data.jsonl", 1, 0))


def example(*ids: int) -> Example:
    return Example(RECORD, ids, ids)


def drawn(number: int, longest: int) -> list[int]:
    draw = random.Random(0)
    return [min(longest, max(2, int(draw.lognormvariate(5, 1)))) for _ in range(number)]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_too_long(seed: int) -> None:
    lengths = drawn(500, 700)
    sequences = fill(lengths, 700, seed)
    assert sorted(number for numbers in sequences for number in numbers) == list(range(500))
    assert all(sum(lengths[number] for number in numbers) <= 700 for numbers in sequences)


def best_fit(lengths: list[int], max_tokens: int) -> list[int]:
    """The plain way, looking at every sequence: how full each one is, sorted."""
    filled: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, sum_ in enumerate(filled) if sum_ + length <= max_tokens]
        if fitting:
            filled[max(fitting, key=filled.__getitem__)] += length
        else:
            filled.append(length)
    return sorted(filled)


@pytest.mark.parametrize("max_tokens", [300, 700, 4096])
def test_it_is_best_fit_decreasing(max_tokens: int) -> None:
    lengths = drawn(400, max_tokens)
    found = fill(lengths, max_tokens, seed=1)
    assert sorted(sum(lengths[number] for number in numbers) for numbers in found) == best_fit(lengths, max_tokens)


def test_the_seed_decides() -> None:
    lengths = [10] * 50
    assert fill(lengths, 50, 1) == fill(lengths, 50, 1)
    assert fill(lengths, 50, 1) != fill(lengths, 50, 2)


def test_edges() -> None:
    assert fill([], 10, 0) == []
    assert fill([10], 10, 0) == [[0]]
    assert sorted(map(sorted, fill([10, 10, 1, 9], 10, 0))) == [[0], [1], [2, 3]]


def test_a_hundred_thousand_take_less_than_two_seconds() -> None:
    for max_tokens in (1024, 32_768):
        lengths = drawn(100_000, max_tokens)
        start = time.process_time()
        sequences = fill(lengths, max_tokens, seed=0)
        assert time.process_time() - start < 2
        assert sum(lengths) / (len(sequences) * max_tokens) > 0.99


def test_the_first_token_of_an_example_is_not_predicted_from_another() -> None:
    (packed,) = pack([example(1, 2, 3), example(4, 5)], 8, seed=0)
    assert packed.lengths == (3, 2)
    assert packed.input_ids == (1, 2, 3, 4, 5)
    assert packed.labels == (IGNORED, 2, 3, IGNORED, 5)
