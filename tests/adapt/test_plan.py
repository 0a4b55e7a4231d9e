"""`plan` as a user calls it: from a config alone, with data, in JSON, and where nothing fits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.adapt import plan
from dsr1_tune.config import PlanRun
from dsr1_tune.errors import TuneError
from dsr1_tune.models.memory_plan.base import describe


def called(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *words])


def test_plan_needs_no_more_than_a_config(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((qwen / "config.json").read_text())
    done = called("--model", str(tmp_path), "--memory", "8GiB", "--set", "schedule.max_tokens=64", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["choice"] == "lora"
    assert set(told["methods"]) == {"lora", "qlora", "full", "esft", "dpo"}
    assert all(one["peak"] == max(one["phases"].values()) for one in told["methods"].values())


def test_plan_where_nothing_fits_exits_1_and_advises(qwen: Path) -> None:
    done = called("--model", str(qwen), "--memory", "100MiB", "--set", "schedule.max_tokens=64")
    assert done.exit_code == 1
    assert "a smaller base" in done.stdout and "Take:" not in done.stdout


def test_plan_takes_the_real_lengths_of_data(qwen: Path, short: Path) -> None:
    config = PlanRun.model_validate({"data": {"files": [str(short)]}, "base": {"model": str(qwen)}})
    batch = plan.batch_of(config, describe(config.base))
    assert 40 < batch.tokens < 120 and batch.rows == 8
    assert batch.eval_rows <= 3


def test_plan_without_data_takes_the_longest_that_settings_allow(qwen: Path) -> None:
    config = PlanRun.model_validate({"base": {"model": str(qwen)}, "schedule": {"batch_size": 3, "max_tokens": 100}})
    batch = plan.batch_of(config, describe(config.base))
    assert (batch.rows, batch.tokens, batch.eval_rows) == (3, 100, 20)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"base": {"model": "/nowhere"}}, "no such folder"), ({"device": "cuda"}, "no GPU")],
)
def test_plan_refuses_what_cannot_be_planned(qwen: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TuneError, match=said):
        plan.run(PlanRun.model_validate({"base": {"model": str(qwen)}, **settings}), Console(file=io.StringIO()))
