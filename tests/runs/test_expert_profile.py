"""The profile of which experts some data uses: a sample of it, counted at the routers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsr1_tune.config import Base
from dsr1_tune.data.encode.example import Example, encode_all
from dsr1_tune.data.record import Message, Record
from dsr1_tune.models.load import Loaded, load
from dsr1_tune.runs.expert_profile import profile, sample


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> Loaded:
    return load(Base(model=str(tiny_base)))


@pytest.fixture(scope="module")
def examples(loaded: Loaded) -> list[Example]:
    records = [Record((Message("user", "why? " * n), Message("assistant", "so " * n)), None) for n in range(1, 13)]
    return encode_all(records, loaded.tokenizer, 512).examples


def test_profile_sample_holds_enough_tokens_and_no_more_examples_than_needed(examples: list[Example]) -> None:
    drawn = sample(examples, 200, seed=3)
    sizes = [len(example.input_ids) for example in drawn]
    assert sum(sizes) >= 200 > sum(sizes[:-1])
    assert sample(examples, 200, seed=3) == drawn != sample(examples, 200, seed=4)
    assert sorted(map(id, sample(examples, 10**6, seed=0))) == sorted(map(id, examples))


def test_profile_counts_every_token_at_every_router(loaded: Loaded, examples: list[Example]) -> None:
    counted: list[int] = []
    routing = profile(loaded.model, examples, loaded.tokenizer.pad_token_id, counted.append)
    num_tokens = sum(len(example.input_ids) for example in examples)
    assert routing.num_chosen == 2 and sum(counted) == len(examples)
    assert routing.rows_L.tolist() == [2 * num_tokens]
    again = profile(loaded.model, examples[::-1], loaded.tokenizer.pad_token_id)
    assert again.load_LE.tolist() == routing.load_LE.tolist()
    assert not any(module._forward_hooks for module in loaded.model.modules())
