"""Choosing experts: the fewest that reach the share within each layer, kept in a file that is checked when read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.moe.monitor import Routing, RoutingMonitor
from dsr1_tune.moe.select import Choice, LayerChoice, choose, fewest, shares


def routing(load: list[list[float]], weight: list[list[float]] | None = None) -> Routing:
    names = tuple(f"layers.{layer}.experts" for layer in range(len(load)))
    return Routing(names, torch.tensor(load).double(), torch.tensor(weight or load).double())


def test_shares_are_of_the_layer_not_of_the_expert_over_all_layers() -> None:
    seen = routing([[30, 10, 40, 20], [5, 5, 0, 0]])
    assert shares(seen, "tokens").tolist() == [[0.3, 0.1, 0.4, 0.2], [0.5, 0.5, 0, 0]]


def test_gate_weight_and_tokens_may_choose_different_experts() -> None:
    seen = routing([[50, 30, 20]], [[1.0, 2.0, 7.0]])
    assert choose(seen, "tokens", 0.5)["layers.0.experts"].chosen == (0,)
    assert choose(seen, "gate", 0.5)["layers.0.experts"].chosen == (2,)


@pytest.mark.parametrize(
    ("share", "chosen"),
    [(0.1, (2,)), (0.4, (2,)), (0.41, (0, 2)), (0.7, (0, 2)), (0.9, (0, 2, 3)), (0.91, (0, 1, 2, 3))],
)
def test_choice_is_the_fewest_experts_that_reach_the_share(share: float, chosen: tuple[int, ...]) -> None:
    assert fewest(torch.tensor([0.3, 0.1, 0.4, 0.2]).double(), share) == chosen


def test_choice_has_no_smaller_set() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        scores_E = torch.rand(6).double()
        scores_E /= scores_E.sum()
        chosen = fewest(scores_E, 0.6)
        assert float(scores_E[list(chosen)].sum()) >= 0.6 - 1e-9
        smaller = itertools.combinations(range(6), len(chosen) - 1)
        assert all(float(scores_E[list(numbers)].sum()) < 0.6 for numbers in smaller)


def test_of_equal_experts_the_first_and_of_all_only_those_that_are_used() -> None:
    assert fewest(torch.full((4,), 0.25).double(), 0.5) == (0, 1)
    assert fewest(torch.full((3,), 1 / 3).double(), 1.0) == (0, 1, 2)
    assert fewest(torch.tensor([0.5, 0.0, 0.5]).double(), 1.0) == (0, 2)


def test_choice_refuses_a_layer_without_tokens_by_name() -> None:
    with pytest.raises(ModelError, match=r"layers\.1\.experts: no token"):
        choose(routing([[1, 1], [0, 0]]), "tokens", 0.2)


# --- experts.json ----------------------------------------------------------------------------------------------------


ModelOf = Callable[..., Any]


@pytest.fixture
def model_of(tiny_model: Callable[..., Path]) -> ModelOf:
    """model_of(num_experts=8) is a tiny Qwen3-MoE."""
    return lambda **changes: AutoModelForCausalLM.from_pretrained(tiny_model("qwen3_moe", **changes)).eval()


def choice_of(model: Any) -> Choice:
    monitor = RoutingMonitor(model)
    model(input_ids=torch.arange(40).view(2, 20))
    layers = choose(monitor.take(), "gate", 0.5)
    monitor.close()
    return Choice("some/model", "abc", {"a.json": "12"}, 40, "gate", 0.5, layers)


def test_a_model_is_profiled_and_the_choice_written_and_read(model_of: ModelOf, tmp_path: Path) -> None:
    model = model_of()
    made = choice_of(model)
    made.write(tmp_path / "experts.json")
    read = Choice.read(tmp_path / "experts.json")
    assert read == made
    assert list(read.layers) == ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    assert read.num_experts == 8 and 2 <= read.num_chosen < 8
    for layer in read.layers.values():
        assert sum(layer.shares) == pytest.approx(1)
        assert sum(layer.shares[number] for number in layer.chosen) >= 0.5
    read.check(model, "experts.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 1}, r"e\.json: layers: the model has no model\.layers\.1\.mlp\.experts"),
        ({"num_hidden_layers": 3}, r"e\.json: layers: has nothing of the model's model\.layers\.2\.mlp\.experts"),
        ({"num_experts": 8}, r"e\.json: layers\.model\.layers\.0\.mlp\.experts: has 4 experts, .* has 8"),
    ],
)
def test_choice_for_another_model_is_refused_with_the_place(
    model_of: ModelOf, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said) as refused:
        choice_of(model_of()).check(model_of(**change), "e.json")
    assert "some/model" in refused.value.hint


def broken(change: Any) -> str:
    choice = Choice("m", None, {}, 1, "gate", 0.2, {"x": LayerChoice((0.5, 0.5), (0,))})
    path = Path("experts.json")
    choice.write(path)
    tree = json.loads(path.read_text())
    change(tree)
    return json.dumps(tree)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree.pop("format"), "is no experts.json of this version"),
        (lambda tree: tree.pop("share"), "has no share"),
        (lambda tree: tree.update(score="taste"), "score: taste is neither gate nor tokens"),
        (lambda tree: tree["layers"]["x"].pop("chosen"), r"layers\.x: has no shares or no chosen"),
        (lambda tree: tree["layers"]["x"].update(chosen=[2]), r"layers\.x\.chosen: there is no expert 2 among 2"),
        (lambda tree: tree["layers"]["x"].update(chosen=[1, 1]), r"layers\.x\.chosen: names an expert twice"),
        (lambda tree: tree["layers"]["x"].update(chosen=["1"]), r"layers\.x\.chosen: holds something"),
        (lambda tree: tree.update(layers=[]), "experts.json: "),
    ],
)
def test_choice_in_a_damaged_file_is_refused_with_the_place(
    change: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("experts.json").write_text(broken(change))
    with pytest.raises(ConfigError, match=said):
        Choice.read(Path("experts.json"))


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff"])
def test_choice_read_refuses_what_is_no_such_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "experts.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"experts\.json"):
        Choice.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Choice.read(tmp_path / "none.json")


def test_scores_of_any_sign_give_shares() -> None:
    scores: Tensor = shares(routing([[1, 1]], [[3.0, -1.0]]), "gate")
    assert scores.tolist() == [[1.0, 0.0]]
