"""The user's own functions as rewards: what they may take and break, and what a run reads of their errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

from dsr1_tune.align import ppo
from dsr1_tune.align.rewards.component import NoScore, in_batches
from dsr1_tune.align.rewards.errors import RewardErrors
from dsr1_tune.align.rewards.layered import Answered, LayeredReward, RewardResult
from dsr1_tune.config import REWARD_NUMBERS, PpoRun
from dsr1_tune.data.record import Message
from dsr1_tune.errors import ConfigError, DataError

Own = Callable[[str], LayeredReward]


def answered(answer: str) -> Answered:
    return Answered((Message("user", "How much?"),), answer)


@pytest.fixture
def own(tmp_path: Path) -> Own:
    """own("def good(...): ...") is a reward of that function and of an answer's length."""

    def made(code: str) -> LayeredReward:
        (tmp_path / "own.py").write_text(code)
        components = [{"type": "function", "call": "own.py:good"}, "not_empty"]
        file = tmp_path / "rewards.yaml"
        file.write_text(yaml.safe_dump({"layers": [{"name": "task", "components": components}]}))
        return LayeredReward.read(file)

    return made


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def good(completions, **kwargs): return [1.0]", "good needs completions"),
        ("def good(prompts, completions, answer, **kwargs): return [1.0]", "good needs prompts, completions"),
        ("def good(prompts=None, completions=None, **kwargs): return 1", "good takes nothing that it could judge"),
        ("def good(*args): return 1", "good takes nothing that it could judge"),
        ("def good(text='x'): return 1", "good takes nothing that it could judge"),
        ("def good(answer, /): return 1", "good needs answer"),
        ("def good(text, **kwargs): return 1", "good needs text"),
    ],
)
def test_a_function_that_would_not_be_given_the_answer_is_refused(own: Own, code: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        own(code)
    assert "question, answer, expected, info" in caught.value.message
    assert ("lists of them as in TRL" in caught.value.message) is ("completions" in code)


@pytest.mark.parametrize("takes", ["answer", "*, answer", "answer, **kwargs", "answer, *args", "answer, scale=2"])
def test_what_a_function_may_take(own: Own, takes: str) -> None:
    assert own(f"def good({takes}): return answer == 'yes'").judge([answered("yes")])[0].total == 1


def test_all_that_is_given_comes_to_one_that_takes_all(own: Own) -> None:
    reward = own("def good(**given): return sorted(given) == ['answer', 'expected', 'info', 'question']")
    assert reward.judge([answered("yes")])[0].total == 1


def test_nothing_that_a_function_raises_ends_the_run(own: Own) -> None:
    code = """\
import asyncio

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def good(answer):
    if answer == "mute":
        raise Mute
    if answer == "cancelled":
        raise asyncio.CancelledError
    if answer == "stop":
        raise KeyboardInterrupt
    return 1
"""
    reward = own(code)
    found = reward.judge([answered(one) for one in ("mute", "fine", "cancelled")])
    assert [verdict.components["task/function"] for verdict in found] == [0, 1, 0]
    assert found[0].errors == ("task/function: Mute",)
    assert found[2].errors == ("task/function: NoScore: it raised CancelledError",)
    with pytest.raises(KeyboardInterrupt):
        reward.judge([answered("stop")])


def test_a_judge_that_raises_takes_no_other_answer_with_it(own: Own) -> None:
    reward = own("def good(answer): return 1").open()
    assert reward._judges is not None

    def judge(answers: object) -> list[float | Exception]:
        assert isinstance(answers, list)
        return [len(one.answer) / (len(one.answer) - 3) * 0 + 1 for one in answers]

    reward._judges["task/not_empty"] = judge
    found = reward.judge([answered("four"), answered("two"), answered("seven")])
    assert [verdict.components["task/not_empty"] for verdict in found] == [1, 0, 1]
    assert "ZeroDivisionError" in found[1].errors[0]


def test_what_a_function_sets_for_all_is_put_back(own: Own, tmp_path: Path) -> None:
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
    assert own(code).judge([answered("a")])[0].total == 1
    assert torch.is_grad_enabled() and Path.cwd() == folder
    assert torch.equal(torch.rand(3), wanted)
    os.chdir(folder)


def test_going_on_reads_any_answer_and_leaves_out_half_a_line(tmp_path: Path) -> None:
    errors = RewardErrors(tmp_path, "zero", lambda said: None)
    texts = ["a\u2028b", "a\x85b", "a\r\nb", "答"]
    verdicts = [RewardResult(0.0, errors=("task/own: ValueError: no",))] * len(texts)
    for step in (1, 2):
        errors.note([answered(text) for text in texts], verdicts, step)
    whole = errors.file.read_bytes()
    with errors.file.open("ab") as file:
        file.write(json.dumps({"step": 2, "component": "task/own", "answer": "答"}, ensure_ascii=False).encode()[:-3])
    after = RewardErrors(tmp_path, "zero", lambda said: None)
    after.go_on(2)
    assert after.counts == {"task/own": 8} and after.file.read_bytes() == whole
    after.go_on(1)
    assert after.counts == {"task/own": 4} and whole.startswith(after.file.read_bytes())


def test_rows_whose_result_holds_no_number_are_named_before_anything_is_loaded(
    ppo_run: Callable[..., PpoRun], tiny_base: Path, tmp_path: Path, quiet: Console
) -> None:
    rewards = tmp_path / "numeric.yaml"
    rewards.write_text("layers: [{name: task, components: [numeric]}]")
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {n}", "answer": "so it is", "ground_truth": n} for n in range(6)]
    rows += [{"prompt": f"tell {n}", "ground_truth": "many"} for n in range(7)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ppo_run(tiny_base, data={"files": [str(file)]}, rewards=str(rewards))
    with pytest.raises(DataError, match="holds no number: 'many', which task/numeric needs") as caught:
        ppo.run(config, console=quiet)
    assert str(file) in caught.value.message and "and 2 more rows" in caught.value.message
    assert "--map ground_truth=" in caught.value.hint


@pytest.mark.parametrize("name", REWARD_NUMBERS)
def test_no_layer_is_called_as_a_number_of_the_log(tmp_path: Path, name: str) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(f"layers: [{{name: {name}, components: [ended]}}]")
    with pytest.raises(ConfigError, match="is a number of the log"):
        LayeredReward.read(file)


def test_gates_that_say_nothing_are_errors_and_one_component_is_a_list_of_one(tmp_path: Path) -> None:
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


def test_why_one_of_a_batch_has_no_score_is_kept() -> None:
    why = NoScore("9,000 tokens, 2,048 are allowed")
    found = in_batches(lambda items: [why, 3.0, float("nan")], ["a", "b", "c"], lambda number: number / 4)
    assert found[:2] == [why, 0.75] and "no number" in str(found[2])
