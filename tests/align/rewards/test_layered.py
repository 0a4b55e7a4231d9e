"""Layers and gates: the total, what fails for one answer, and that a reward leaves the process as it was."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.file import KINDS
from dsr1_tune.align.rewards.layered import LayeredReward


def parts(*words: str) -> list[dict[str, Any]]:
    """A component for each word, 1 where the answer has it."""
    return [{"type": "contains", "words": [word], "name": word} for word in words]


@pytest.mark.parametrize(
    ("gate", "answer", "gates", "total"),
    [
        ("none", "x", [1, 1], 0 + 2 * 1),
        (None, "b x", [1, 0.25], 0.25 + 2 * 0.25),
        ({"soft": 0.5}, "b x", [1, 0.5], 0.25 + 2 * 0.5),
        ({"soft": 0.5}, "a x", [1, 1], 0.75 + 2),
        ({"hard": 0.75}, "a x", [1, 1], 0.75 + 2),
        ({"hard": 0.75}, "b x", [1, 0], 0.25),
        ("hard", "a b x", [1, 1], 1 + 2),
        ("hard", "a x", [1, 0], 0.75),
    ],
)
def test_reward_total_is_the_formula(
    read: Callable[..., LayeredReward],
    gate: Any,
    answer: str,
    gates: list[float],
    total: float,
    answered: Callable[..., Answered],
) -> None:
    low = parts("a", "b")
    low[0]["weight"] = 3
    result = read(
        {"components": low, **({"gate": gate} if gate else {})}, {"components": parts("x"), "weight": 2}
    ).score([answered(answer)])[0]
    assert list(result.gates.values()) == gates
    assert result.total == pytest.approx(total)
    assert result.total == pytest.approx(result.layers["a"] + 2 * result.layers["b"])
    assert result.components == {"a/a": "a" in answer, "a/b": "b" in answer, "b/x": 1}


def test_gates_multiply_upwards(read: Callable[..., LayeredReward], answered: Callable[..., Answered]) -> None:
    result = read(parts("a", "b"), parts("c", "d"), parts("e")).score([answered("a c e")])[0]
    assert result.gates == {"a": 1, "b": 0.5, "c": 0.25}
    assert result.total == pytest.approx(0.5 + 0.25 + 0.25)


def test_hard_gate_forgives_rounding(read: Callable[..., LayeredReward], answered: Callable[..., Answered]) -> None:
    low = parts("a", "b", "c")
    for part, weight in zip(low, (0.1, 0.2, 0.7), strict=True):
        part["weight"] = weight
    result = read({"components": low, "gate": {"hard": 0.3}}, parts("x")).score([answered("a b x")])[0]
    assert result.gates["b"] == 1


def test_component_that_fails_for_one_answer_counts_0_there_alone(
    read: Callable[..., LayeredReward], answered: Callable[..., Answered], write_own: Callable[[str], None]
) -> None:
    write_own(
        "import sys\n"
        "def good(answer):\n"
        "    if answer == 'raise': raise ValueError('out of\\nrange')\n"
        "    if answer == 'exit': sys.exit(3)\n"
        "    return {'nan': float('nan'), 'inf': float('inf'), 'none': None, 'text': 'high'}.get(answer, 1)\n",
    )
    reward = read([{"type": "function", "call": "own.py:good"}], ["not_empty"])
    texts = ["fine", "raise", "nan", "inf", "none", "text", "exit", "fine"]
    results = reward.score([answered(text) for text in texts])
    assert [result.components["a/function"] for result in results] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert [len(result.errors) for result in results] == [0, 1, 1, 1, 1, 1, 1, 0]
    assert results[1].errors == ("a/function: ValueError: out of range",)
    assert all(result.components["b/not_empty"] == 1 for result in results)
    assert all(math.isfinite(result.total) for result in results)


def test_row_without_an_expected_answer_is_an_error_of_that_row(
    read: Callable[..., LayeredReward], answered: Callable[..., Answered]
) -> None:
    reward = read(["numeric"])
    assert reward.needs_expected and not read(["ended"]).needs_expected
    assert read([{"type": "regex", "pattern": "{expected}"}]).needs_expected
    assert "no expected answer" in reward.score([answered("3")])[0].errors[0]
    assert "holds no number" in reward.score([answered("3", "many")])[0].errors[0]


def test_scorer_that_raises_takes_no_other_answer_with_it(
    own: Callable[[str], LayeredReward], answered: Callable[..., Answered]
) -> None:
    reward = own("def good(answer): return 1").open()
    assert reward._scorers is not None

    def scorer(answers: object) -> list[float | Exception]:
        assert isinstance(answers, list)
        return [len(one.answer) / (len(one.answer) - 3) * 0 + 1 for one in answers]

    reward._scorers["task/not_empty"] = scorer
    found = reward.score([answered("four"), answered("two"), answered("seven")])
    assert [result.components["task/not_empty"] for result in found] == [1, 0, 1]
    assert "ZeroDivisionError" in found[1].errors[0]


def test_reward_puts_back_seed_grad_mode_and_folder(
    own: Callable[[str], LayeredReward], answered: Callable[..., Answered]
) -> None:
    folder = Path.cwd()
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    code = """\
import os, torch
torch.manual_seed(1)
torch.set_grad_enabled(False)
def good(answer):
    torch.manual_seed(2)
    torch.set_grad_enabled(False)
    os.chdir("/")
    return 1
"""
    assert own(code).score([answered("a")])[0].total == 1
    assert torch.is_grad_enabled() and Path.cwd() == folder
    assert torch.equal(torch.rand(3), wanted)
    os.chdir(folder)


def test_reward_file_in_the_docs_is_valid(tmp_path: Path, answered: Callable[..., Answered]) -> None:
    docs = (Path(__file__).parents[3] / "docs" / "alignment.md").read_text(encoding="utf-8")
    section = docs[docs.index("## Layered rewards") :]
    file = tmp_path / "rewards.yaml"
    file.write_text(section.split("```yaml\n", 1)[1].split("```", 1)[0], encoding="utf-8")
    reward = LayeredReward.read(file)
    assert [layer.name for layer in reward.settings.layers] == ["form", "logic", "task"] and reward.needs_expected
    result = reward.score([answered("<think>2 and 2 are 4</think>It is 4.", "4", num_tokens=12)])[0]
    assert result.total == pytest.approx(1.4) and not result.errors
    for kind in KINDS:
        assert f"| `{kind}` |" in section, kind
