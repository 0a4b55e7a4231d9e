"""Examples are put together whole, none is lost, and the sequences are nearly full."""

from __future__ import annotations

import random
import sys
from types import FrameType
from typing import Any

import pytest

from dsr1_tune.data.encode import packing
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
def test_fill_loses_nothing_and_keeps_to_the_limit(seed: int) -> None:
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
def test_fill_is_best_fit_decreasing(max_tokens: int) -> None:
    lengths = drawn(400, max_tokens)
    found = fill(lengths, max_tokens, seed=1)
    assert sorted(sum(lengths[number] for number in numbers) for numbers in found) == best_fit(lengths, max_tokens)


def test_fill_mixes_by_the_seed() -> None:
    lengths = [10] * 50
    assert fill(lengths, 50, 1) == fill(lengths, 50, 1)
    assert fill(lengths, 50, 1) != fill(lengths, 50, 2)


def test_fill_at_the_edges() -> None:
    assert fill([], 10, 0) == []
    assert fill([10], 10, 0) == [[0]]
    assert sorted(map(sorted, fill([10, 10, 1, 9], 10, 0))) == [[0], [1], [2, 3]]


@pytest.mark.parametrize("max_tokens", [1024, 32_768])
def test_fill_leaves_little_room_in_a_hundred_thousand_examples(max_tokens: int) -> None:
    lengths = drawn(100_000, max_tokens)
    sequences = fill(lengths, max_tokens, seed=0)
    assert sum(lengths) / (len(sequences) * max_tokens) > 0.99


def lines_run(number: int, max_tokens: int) -> int:
    """How many lines of the module run to fill sequences with so many examples."""
    num_lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename != packing.__file__:
            return None
        num_lines += event == "line"
        return trace

    lengths = drawn(number, max_tokens)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        fill(lengths, max_tokens, seed=0)
    finally:
        sys.settrace(before)
    return num_lines


def test_fill_does_the_same_work_for_every_example() -> None:
    """The work grows with the number of examples, not with the number of sequences that are open."""
    few, many = lines_run(2_000, 1024), lines_run(8_000, 1024)
    assert few < 25 * 2_000 + 2 * 1024
    assert many < 4.4 * few


def test_pack_predicts_no_first_token_from_another_example() -> None:
    (packed,) = pack([example(1, 2, 3), example(4, 5)], 8, seed=0)
    assert packed.lengths == (3, 2)
    assert packed.input_ids == (1, 2, 3, 4, 5)
    assert packed.labels == (IGNORED, 2, 3, IGNORED, 5)
