"""The arithmetic example: its script writes its sums, its results are right, its rewards tell answers apart."""

from __future__ import annotations

import json
import operator
import re
import runpy
from pathlib import Path

import pytest

from dsr1_tune.align.rewards import preview
from dsr1_tune.align.rewards.layered import LayeredReward
from dsr1_tune.config import GrpoRun
from dsr1_tune.config.load import load_config

FOLDER = Path(__file__).parents[1] / "examples" / "arithmetic"
WORKS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def test_the_script_writes_the_file_and_every_result_is_right(tmp_path: Path) -> None:
    problems = runpy.run_path(str(FOLDER / "make.py"))["problems"]()
    rows = [json.loads(line) for line in (FOLDER / "prompts.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == [str(result) for _, result in problems]
    assert len({row["prompt"] for row in rows}) == len(rows) >= 200
    for row, (problem, _) in zip(rows, problems, strict=True):
        found = re.search(r"(\d+) ([-+*]) (\d+)\?", row["prompt"])
        assert found and problem in row["prompt"]
        assert WORKS[found[2]](int(found[1]), int(found[3])) == int(row["answer"])


def test_the_rewards_tell_answers_apart() -> None:
    reward = LayeredReward.read(FOLDER / "rewards.yaml")
    tested = preview.run(reward, [FOLDER / "answers.jsonl"], {}, lambda done, of: None).tested
    assert [one.result.total for one in tested] == pytest.approx([3.0, 2.5, 1.0, 0.5, 0.0])


def test_the_settings_are_ready_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parents[1])
    config = load_config(GrpoRun, FOLDER / "grpo.yaml")
    assert config.rewards == FOLDER / "rewards.yaml" and config.data.files[0].exists()
