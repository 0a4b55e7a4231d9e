"""What tests of alignment share: prompts, a reward that a tiny model can earn, and settings for short runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.config import PpoRun

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
