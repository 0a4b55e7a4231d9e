"""The profile of which experts some data uses: a sample of it, counted at the routers."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from dsr1_tune.config import Base
from dsr1_tune.data.encode.example import Example, encode_all
from dsr1_tune.data.record import Message, Record
from dsr1_tune.models.load import Loaded, load
from dsr1_tune.moe.select import Choice, LayerChoice
from dsr1_tune.runs.expert_profile import entropy, profile, sample, show_choice


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


def shown(choice: Choice) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    show_choice(choice, console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_choice_table_has_a_line_per_layer_and_a_sum() -> None:
    layers = {
        "model.layers.1.mlp.experts": LayerChoice((0.1, 0.6, 0.0, 0.3), (1, 3)),
        "model.layers.2.mlp.experts": LayerChoice((0.25, 0.25, 0.25, 0.25), (0, 1, 2)),
    }
    lines = shown(Choice("base", None, {}, 12_345, "gate", 0.75, layers))
    assert "The fewest experts that take 75% of a layer's gate weight" in lines[0]
    (first,) = (line.split() for line in lines if line.split()[:1] == ["1"])
    assert first[:5] == ["1", "4", "2", "90%", "0.65"]
    assert " ".join(first[5:]) == "1 (60%), 3 (30%), 0 (10%), 2 (0%)"
    (second,) = (line.split() for line in lines if line.split()[:1] == ["2"])
    assert second[:5] == ["2", "4", "3", "75%", "1.00"]
    assert lines[-1] == "5 of 8 experts are chosen (62.5%), from 12,345 tokens of the data"


def test_choice_table_names_the_score_and_a_layer_without_a_number() -> None:
    lines = shown(Choice("base", None, {}, 1, "tokens", 0.5, {"experts": LayerChoice((1.0,), (0,))}))
    assert "of a layer's tokens" in lines[0]
    assert any(line.split()[:5] == ["experts", "1", "1", "100%", "1.00"] for line in lines)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((1.0,), 1.0), ((0.5, 0.5), 1.0), ((1.0, 0.0), 0.0), ((0.5, 0.25, 0.25, 0.0), 1.5 * math.log(2) / math.log(4))],
)
def test_entropy_is_one_for_an_even_use_and_zero_for_one_expert(shares: tuple[float, ...], expected: float) -> None:
    assert entropy(LayerChoice(shares, ())) == pytest.approx(expected)
