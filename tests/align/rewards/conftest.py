"""What tests of rewards share: answers to be scored, rewards made of a few components, and a typed `reward-test`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsr1_tune import cli
from dsr1_tune.align.rewards.component import Answered
from dsr1_tune.align.rewards.layered import LayeredReward
from dsr1_tune.data.record import Message

REWARDS = """\
layers:
  - name: form
    gate: {soft: 0.5}
    components:
      - not_empty
      - {type: length, max_chars: 20, soft: 10}
  - name: task
    weight: 2
    components:
      - {type: function, call: 'own.py:good'}
"""
OWN = """\
def good(answer):
    if 'raise' in answer:
        raise ValueError('cannot')
    return 'good' in answer
"""


@pytest.fixture
def answered() -> Callable[..., Answered]:
    """answered("so 4", "4", "2 + 2?") is an answer with what is expected and what was asked."""

    def made(answer: str, expected: str | None = None, question: str = "How much is it?", **known: Any) -> Answered:
        return Answered((Message("user", question),), answer, expected, **known)

    return made


@pytest.fixture
def reply(answered: Callable[..., Answered]) -> Callable[..., Answered]:
    """reply("2 + 2?", "so 4", "4") is the same, the question first."""
    return lambda question, answer, expected=None: answered(answer, expected, question)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., LayeredReward]:
    """read(components, components, ...) is a reward with a layer a, b, ... for each list; dicts are whole layers."""

    def made(*layers: Any) -> LayeredReward:
        tree = [one if isinstance(one, dict) else {"components": one} for one in layers]
        named = [{"name": "abcdef"[number], **one} for number, one in enumerate(tree)]
        file = tmp_path / "rewards.yaml"
        file.write_text(yaml.safe_dump({"layers": named}, allow_unicode=True), encoding="utf-8")
        return LayeredReward.read(file)

    return made


@pytest.fixture
def score(read: Callable[..., LayeredReward], answered: Callable[..., Answered]) -> Callable[..., float]:
    """score({"type": ...}, answer, expected) is what one component alone gives."""

    def of(component: Any, answer: str, expected: str | None = None, **known: Any) -> float:
        result = read([component]).score([answered(answer, expected, **known)])[0]
        assert not result.errors
        return result.total

    return of


@pytest.fixture
def write_own(tmp_path: Path) -> Callable[[str], None]:
    """write_own("def good(...): ...") is the user's own code, beside the reward file."""

    def written(code: str) -> None:
        (tmp_path / "own.py").write_text(code)

    return written


@pytest.fixture
def own(tmp_path: Path, write_own: Callable[[str], None]) -> Callable[[str], LayeredReward]:
    """own("def good(...): ...") is a reward of that function and of an answer's length."""

    def made(code: str) -> LayeredReward:
        write_own(code)
        components = [{"type": "function", "call": "own.py:good"}, "not_empty"]
        file = tmp_path / "rewards.yaml"
        file.write_text(yaml.safe_dump({"layers": [{"name": "task", "components": components}]}))
        return LayeredReward.read(file)

    return made


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """typed("rewards.yaml", ...) → (exit code, stdout, stderr), in a folder with a reward file, 80 columns wide."""
    (tmp_path / "rewards.yaml").write_text(REWARDS)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["dsr1-tune", "reward-test", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


@pytest.fixture
def lines() -> Callable[..., str]:
    """lines("a.jsonl", {...}, {...}) writes rows to a file and gives its name."""

    def written(name: str, *rows: dict[str, Any]) -> str:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return written
