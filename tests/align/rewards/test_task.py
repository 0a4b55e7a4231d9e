"""Components of the task: results that are compared, reward models, and functions of the user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dsr1_tune.align import ppo
from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.layered import LayeredReward
from dsr1_tune.align.rewards.scoring import score_conversations
from dsr1_tune.config import Base, PpoRun
from dsr1_tune.errors import ConfigError, DataError
from dsr1_tune.models.load import load_located, locate
from dsr1_tune.models.trained import reward_model


@pytest.mark.parametrize(
    ("component", "answer", "expected", "wanted"),
    [
        ("numeric", "so 0.5", "1/2", 1),
        ("numeric", "so 0.51", "1/2", 0),
        ({"type": "numeric", "tolerance": 0.01}, "so 0.51", "1/2", 1),
        ({"type": "numeric", "relative": 0.01}, "1009", "1,000", 1),
        ({"type": "numeric", "percent": False}, "50%", "50", 1),
        ("numeric", "no idea", "3", 0),
        ("numeric", r"\boxed{3, 4}", "3, 4", 1),
        ("numeric", "Answer: 3:4", "3:4", 1),
        ("numeric", "Answer: 5 to 10", "5 to 10", 1),
        ("numeric", "<think>3</think>4", "3", 0),
        ("numeric", "<think>3</think>4", "steps... #### 4", 1),
        ("exact", "**Paris**.", "paris", 1),
        ("exact", "The answer is: Ｐａｒｉｓ", "Paris", 1),
        ("exact", r"\boxed{\text{B}}", "(B)", 1),
        ("exact", "London", "Paris", 0),
        ({"type": "regex", "pattern": r"\Ax{expected}\Z"}, "xa.b", "a.b", 1),
        ({"type": "regex", "pattern": r"\Ax{expected}\Z"}, "xacb", "a.b", 0),
        ({"type": "regex", "pattern": r"\A{expected}\Z"}, "Ha\u0300 No\u0323\u0302i", "Hà Nội", 1),
        ({"type": "regex", "pattern": r"\A{expected}\Z"}, "Hà Nôi", "Ha\u0300 No\u0323\u0302i", 0),
        ({"type": "regex", "pattern": r"^\d{2}$"}, "12", None, 1),
    ],
)
def test_task_component_scores(
    score: Callable[..., float], component: Any, answer: str, expected: str | None, wanted: float
) -> None:
    assert score(component, answer, expected) == wanted


def test_numeric_names_rows_without_a_number_before_anything_is_loaded(
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


def test_function_is_scaled_and_given_what_it_takes(
    read: Callable[..., LayeredReward], answered: Callable[..., Answered], write_own: Callable[[str], None]
) -> None:
    write_own("def good(answer, info, expected=None): return len(answer) + info.num_tokens\n")
    call = {"type": "function", "call": "own.py:good"}
    one = answered("abcd", num_tokens=6)
    assert read([call | {"scale": [0, 20]}]).score([one])[0].total == 0.5
    assert read([call | {"scale": [20, 0]}]).score([one])[0].total == 0.5
    assert read([call | {"scale": [0, 5]}]).score([one])[0].total == 1
    assert read([call | {"unbounded": True}]).score([one])[0].total == 10
    assert read([call | {"sigmoid": True}]).score([one])[0].total == pytest.approx(1 / (1 + math.exp(-10)))
    failed = read([call]).score([one])[0]
    assert failed.total == 0 and "not from 0 to 1" in failed.errors[0]


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
def test_function_that_would_not_be_given_the_answer_is_refused(
    own: Callable[[str], LayeredReward], code: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        own(code)
    assert "question, answer, expected, info" in caught.value.message
    assert ("lists of them as in TRL" in caught.value.message) is ("completions" in code)


@pytest.mark.parametrize("takes", ["answer", "*, answer", "answer, **kwargs", "answer, *args", "answer, scale=2"])
def test_function_may_take_the_answer_in_any_way(
    own: Callable[[str], LayeredReward], takes: str, answered: Callable[..., Answered]
) -> None:
    assert own(f"def good({takes}): return answer == 'yes'").score([answered("yes")])[0].total == 1


def test_function_of_keywords_is_given_everything(
    own: Callable[[str], LayeredReward], answered: Callable[..., Answered]
) -> None:
    reward = own("def good(**given): return sorted(given) == ['answer', 'expected', 'info', 'question']")
    assert reward.score([answered("yes")])[0].total == 1


def test_reward_model_that_is_missing_or_none_is_refused(read: Callable[..., LayeredReward], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        read([{"type": "reward_model", "path": "nowhere"}])
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="is no reward model"):
        read([{"type": "reward_model", "path": "model", "sigmoid": True}])


def test_reward_model_scores_what_is_said(
    read: Callable[..., LayeredReward], tmp_path: Path, tiny_base: Path, answered: Callable[..., Answered]
) -> None:
    torch.manual_seed(0)
    base = locate(Base(model=str(tiny_base)))
    loaded = load_located(base, "float32")
    model = reward_model.ScalarModel(loaded.model, loaded.tokenizer)
    facts = reward_model.RewardFacts(chat_template_sha256=reward_model.template_hash(loaded.tokenizer))
    reward_model.save_scalar(model, base, tmp_path / "scorer", facts)
    part = {"type": "reward_model", "path": "scorer"}
    with pytest.raises(ConfigError, match="say how it becomes a score"):
        read([part])
    answers = [answered("a cat"), answered("<think>well</think>a cat"), answered(" "), answered("a dog " * 9)]
    raw = [result.total for result in read([part | {"unbounded": True}]).score(answers)]
    wanted = score_conversations(model.eval(), [(answers[0].prompt, "a cat"), (answers[3].prompt, "a dog " * 9)])
    assert [raw[0], raw[3]] == pytest.approx(wanted, abs=1e-5)
    assert raw[1] == pytest.approx(raw[0], abs=1e-5) and abs(raw[3] - raw[0]) > 1e-4
    bounded = read([part | {"sigmoid": True}]).score(answers)
    assert [result.total for result in bounded[:2]] == pytest.approx([1 / (1 + math.exp(-wanted[0]))] * 2)
    assert bounded[2].total == 0 and not bounded[2].errors
