"""The llama.cpp child's own steps; whole conversations with it are in test_client.py."""

from __future__ import annotations

import random
from array import array

import pytest

from dsr1_tune.models.llama_cpp import process
from dsr1_tune.models.llama_cpp.process import Engine, Refused


def row(*scores: float) -> memoryview:
    return memoryview(array("f", scores))


def test_pick_without_temperature_is_the_likeliest() -> None:
    assert process._pick(row(0.5, 3.0, -1.0, 2.9), 0.0, random.Random(0)) == 1


def test_pick_draws_by_softmax_of_the_temperature() -> None:
    draw = random.Random(0)
    drawn = [process._pick(row(0.0, 2.0, -1000.0), 2.0, draw) for _ in range(2000)]
    assert drawn.count(2) == 0
    assert drawn.count(1) / drawn.count(0) == pytest.approx(2.718, rel=0.15)  # e^(2/2)


def test_engine_refuses_tokens_that_it_cannot_take() -> None:
    engine = object.__new__(Engine)
    engine.num_context, engine.num_vocab = 4, 10
    engine._check([0, 9, 3], 1)
    for ids, room, said in (
        ([], 0, "no tokens"),
        ([1, 2, 3, 4], 1, "do not fit"),
        ([10], 0, "token 10"),
        ([-1], 0, "-1"),
    ):
        with pytest.raises(Refused, match=said):
            engine._check(ids, room)
