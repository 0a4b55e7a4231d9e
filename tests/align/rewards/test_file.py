"""The reward file: what it may not say, and that every problem is listed with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.layered import LayeredReward
from dsr1_tune.config import REWARD_NUMBERS
from dsr1_tune.errors import ConfigError


def test_reward_file_lists_every_problem_with_its_place(tmp_path: Path, write_own: Callable[[str], None]) -> None:
    write_own("def good(prompts, answer): return 1\n")
    file = tmp_path / "rewards.yaml"
    file.write_text(
        r"""
layers:
  - name: form
    gate: {hard: 1.5}
    components:
      - {type: lenght, max_chars: 3}
      - {type: length, max_char: 3}
      - {type: contains, pattern: '('}
      - {type: not_empty, weight: 0}
      - not_empty
      - {weight: 1}
  - name: task
    gate: {hard: 0.5}
    wait: 2
    components:
      - {type: function, call: 'own.py:good'}
      - {type: function, call: 'missing.py:good', name: b}
      - {type: function, call: 'own.py:best', name: c}
      - {type: reward_model, path: nowhere, sigmoid: true, unbounded: true}
      - {type: numbers, limits: {furlong: [0, 1]}}
      - {type: relevance, model: ./nowhere}
""",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        LayeredReward.read(file)
    lines = [line.removeprefix(f"{file}: ") for line in caught.value.message.splitlines()]
    for said in (
        "layers[0].gate.hard: input should be less than or equal to 1",
        "layers[0].components[0].type: there is no component 'lenght'; did you mean length?",
        "layers[0].components[1].max_char: there is no such setting; did you mean max_chars?",
        "layers[0].components[2].pattern: is no regular expression",
        "layers[0].components[3].weight: input should be greater than 0",
        "layers[0].components[4].name: 'not_empty' is there 2 times",
        "layers[0].components[5]: has no type",
        "layers[1].gate: nothing stands above the last layer",
        "layers[1].wait: there is no such setting; did you mean weight?",
        "layers[1].components[0].call: good needs prompts; it is given",
        "layers[1].components[1].call: ",
        "layers[1].components[2].call: ",
        "layers[1].components[3].path: there is no folder",
        "layers[1].components[4].limits: 'furlong' is no unit known here",
        "layers[1].components[5].model: there is no folder",
    ):
        assert any(line.startswith(said) for line in lines), f"{said}\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no layers"),
        ("layers: []", "layers: is empty"),
        ("layers: 3", "layers: give a list"),
        ("layers: [{name: a, components: []}]", "layers[0].components: is empty"),
        ("layers: [{components: [ended]}]", "layers[0].name: is missing"),
        ("layers: [3]", "layers[0]: give names with values"),
        ("layers: [{name: a, components: [{type: length}]}]", "components[0]: give min_chars"),
        ("layers: [{name: a, components: [{type: length, min_chars: 3, max_chars: 2}]}]", "min_chars=3 is more"),
        ("layers: [{name: a, gate: {hard: 1, soft: 1}, components: [ended]}]", "layers[0].gate: give hard or soft"),
        ("layers: [{name: a, components: [ended]}, {name: a, components: [ended]}]", "layers[1].name: 'a' is there 2"),
        ("layers: [{name: mean, components: [ended]}]", "layers[0].name: 'mean' is a number of the log"),
        ("layers: [{name: a, gate: 0.5, components: [ended, 3]}]", "layers[0].components[1]: give names"),
        ("layers: [{name: a, components: [{type: function, call: a.py}]}]", "call: is neither module:function"),
        ("layers: [", "is not YAML"),
        ("layers: [{name: a/b, components: [ended]}]", "layers[0].name: string should match"),
    ],
)
def test_reward_file_that_is_bad_says_why(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        LayeredReward.read(file)
    assert said in caught.value.message


def test_reward_file_has_unbounded_components_above_all_gates(
    read: Callable[..., LayeredReward], answered: Callable[..., Answered], write_own: Callable[[str], None]
) -> None:
    write_own("def good(answer): return 7\n")
    raw = [{"type": "function", "call": "own.py:good", "unbounded": True}]
    with pytest.raises(ConfigError, match=r"layers\[0\].gate: function is unbounded"):
        read(raw, ["ended"])
    assert read({"components": raw, "gate": "none"}, ["ended"]).score([answered("a")])[0].total == 8


@pytest.mark.parametrize("name", REWARD_NUMBERS)
def test_reward_file_calls_no_layer_as_a_number_of_the_log(tmp_path: Path, name: str) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(f"layers: [{{name: {name}, components: [ended]}}]")
    with pytest.raises(ConfigError, match="is a number of the log"):
        LayeredReward.read(file)


def test_reward_file_with_empty_gates_is_refused_and_one_component_is_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(
        """
layers:
  - {name: a, components: ended, gate: off}
  - {name: b, components: {type: length, max_chars: 3}, gate: 0.8}
  - {name: c, components: [ended], gate: }
  - {name: d, components: ended}
"""
    )
    with pytest.raises(ConfigError) as caught:
        LayeredReward.read(file)
    lines = [line.removeprefix(f"{file}: ") for line in caught.value.message.splitlines()]
    assert [line.partition(": ")[0] for line in lines] == [f"layers[{number}].gate" for number in range(3)]
    assert all("none, hard, soft, or a threshold such as {soft: 0.8}" in line for line in lines)


def test_reward_file_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        LayeredReward.read(tmp_path / "none.yaml")
