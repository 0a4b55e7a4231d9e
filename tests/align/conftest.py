"""What tests of alignment share: prompts, a reward that a tiny model can earn, and settings for short runs."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.align import reward
from dsr1_tune.config import PpoRun, RewardRun
from dsr1_tune.runs.folder import RunFolder
from tests.align.dpo_runs import configure_dpo, dpo_pairs, dpo_run  # noqa: F401

Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def quiet() -> Console:
    """A console that nobody reads."""
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Twenty prompts of different lengths; two of them are held out."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say it {'again ' * (n % 4)}{n}"}) + "\n" for n in range(20)))
    return file


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    """The share of an answer's characters that are letters, and whether it is short."""
    (tmp_path / "own.py").write_text(
        "def letters(question, answer, expected=None, row=None):\n"
        "    return sum(character.isalpha() for character in answer) / max(len(answer), 1)\n"
    )
    file = tmp_path / "rewards.yaml"
    file.write_text(
        f"""\
layers:
  - name: form
    components:
      - {{type: length, max_chars: 40}}
  - name: task
    components:
      - {{type: function, name: letters, call: "{tmp_path / "own.py"}:letters"}}
"""
    )
    return file


@pytest.fixture
def settings(tmp_path: Path, prompts: Path, rewards: Path) -> Settings:
    """settings(base, ppo={"epochs": 1}) is what a short run of ppo is asked to do, as a tree."""

    def tree(base: Path, out: str = "run", **changes: Any) -> dict[str, Any]:
        usual: dict[str, Any] = {
            "data": {"files": [str(prompts)]},
            "base": {"model": str(base)},
            "rewards": str(rewards),
            "rollout": {"max_new_tokens": 6, "batch_size": 8},
            "schedule": {
                "max_steps": 4,
                "learning_rate": 0.01,
                "batch_size": 4,
                "max_tokens": 128,
                "gradient_checkpointing": False,
            },
            "ppo": {"answers": 8, "epochs": 2, "minibatches": 2},
            "watch": {"trackers": []},
            "samples": 0,
            "out": str(tmp_path / out),
        }
        for name, value in changes.items():
            usual[name] = {**usual.get(name, {}), **value} if isinstance(value, dict) else value
        return usual

    return tree


@pytest.fixture
def ppo_run(settings: Settings) -> Callable[..., PpoRun]:
    """The same as a config."""
    return lambda base, **changes: PpoRun.model_validate(settings(base, **changes))


QUIET = Console(file=io.StringIO())

WORDS = ["apple", "river", "stone", "cloud", "green", "table", "light", "paper"]


@pytest.fixture(scope="session")
def zebras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty pairs; the chosen answer holds a zebra, and is as long as the other."""
    draw = random.Random(0)
    rows = []
    for number in range(80):
        bad, good = ([draw.choice(WORDS) for _ in range(3)] for _ in range(2))
        good[draw.randrange(3)] = "zebra"
        differs = ["safety", "tone"][number % 2]
        rows.append(
            {"prompt": f"say {number}", "chosen": " ".join(good), "rejected": " ".join(bad), "differs": differs}
        )
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def reward_config(data: Path, base: Path, out: Path, steps: int = 24, **settings: Any) -> RewardRun:
    tree = {
        "data": {"files": [str(data)], "eval_share": 0.25},
        "base": {"model": str(base)},
        "schedule": {"max_steps": steps, "learning_rate": 0.015, "max_tokens": 128},
        "watch": {"trackers": []},
        "out": str(out),
    }
    return RewardRun.model_validate({**tree, **settings})


@pytest.fixture(scope="session")
def scorer(tmp_path_factory: pytest.TempPathFactory, zebras: Path, tiny_base: Path) -> RunFolder:
    """A finished reward run that knows zebras."""
    out = tmp_path_factory.mktemp("scorer") / "run"
    return reward.run(reward_config(zebras, tiny_base, out), console=QUIET)
