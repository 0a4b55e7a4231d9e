"""A choice of experts on the terminal: a line per layer, whose numbers are those of the choice."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from dsr1_tune.moe.select import Choice, LayerChoice
from dsr1_tune.runs.report.choice_table import entropy, show


def shown(choice: Choice) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    show(choice, console)
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
