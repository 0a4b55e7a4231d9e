"""`plan` as a user calls it: from a config alone, with data, in JSON, and where nothing fits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from dsr1_tune import cli
from dsr1_tune.adapt import plan
from dsr1_tune.config import RUNS, Parallel, PlanRun
from dsr1_tune.errors import TuneError
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.estimate import METHODS, Batch, Estimator, MemoryEstimate
from tests.conftest import tiny_config

SMALL = Batch(2, 32, 2, 32)


def called(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *words])


def test_plan_needs_no_more_than_a_config(qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((qwen / "config.json").read_text())
    done = called("--model", str(tmp_path), "--memory", "8GiB", "--set", "schedule.max_tokens=64", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and told["choice"] == "lora"
    assert set(told["methods"]) == {"lora", "qlora", "full", "esft", "dpo"}
    assert all(one["peak"] == max(one["phases"].values()) for one in told["methods"].values())


def test_memory_that_is_said_is_a_gpus_unless_a_device_is_said(qwen: Path) -> None:
    def first_line(**settings: Any) -> str:
        out = io.StringIO()
        config = PlanRun.model_validate({"base": {"model": str(qwen)}, "memory": "8GiB", **settings})
        plan.run(config, Console(file=out, width=200), methods=())
        return out.getvalue().split("\n")[0]

    assert first_line().startswith("For a GPU") and "device=cpu plans for the CPU" in first_line()
    assert first_line(device="cpu").startswith("For this machine's CPU")


def test_what_the_command_would_refuse_is_said_in_place_of_whether_it_fits(qwen: Path) -> None:
    out = io.StringIO()
    tree = {"base": {"model": str(qwen)}, "memory": 8, "schedule": {"max_tokens": 64}}
    config = PlanRun.model_validate({**tree, "parallel": {"processes": 4, "strategy": "fsdp2"}})
    made = plan.run(config, Console(file=out, width=200))
    assert "qlora: refused: qlora's 4-bit weights cannot be shared out by fsdp2; use experts" in out.getvalue()
    assert "Take: dsr1-tune lora --processes 4 --set parallel.strategy=fsdp2" in out.getvalue()
    told = plan.as_json(made)["methods"]
    assert [name for name, one in told.items() if one["fits"]] == ["lora", "full"]
    assert told["dpo"]["refused"].startswith("parallel.strategy=fsdp2: alignment shares no weights out")


STRATEGIES = get_args(Parallel.model_fields["strategy"].annotation)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": {"optimizer": "paged_adamw_8bit"}},
        {"adapter": {"dora": True}},
        {"base": {"attention": "flash_attention_2"}},
        {"base": {"attention": "flash_attention_2", "dtype": "float32"}},
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_what_fits_is_what_the_commands_own_config_accepts(
    monkeypatch: pytest.MonkeyPatch, strategy: Any, device: Any, changes: dict[str, Any], processes: int
) -> None:
    # What runs need is of no matter here: everything would fit.
    monkeypatch.setattr(Estimator, "estimate", lambda self, method, **more: nothing_needed(method))
    tree = {"parallel": {"processes": processes, "strategy": strategy}, "device": device, "memory": 8, **changes}
    try:
        config = PlanRun.model_validate(tree)
    except ValidationError as error:  # no method goes with it, and nothing is planned
        assert "8bit" in str(error) and strategy == "fsdp2"
        return
    base = PlannedBase("tiny", Path(), tiny_config("qwen3_moe"), "float32")
    made = plan.fitted(config, base, SMALL, METHODS)
    for method in METHODS:
        accepted = is_accepted(config, method, device)
        assert made.fits(method) == accepted, (method, made.refused.get(method))
        assert accepted or len(made.refused[method]) > 20


def test_attention_that_an_architecture_does_not_have_is_refused() -> None:
    config = PlanRun.model_validate({"base": {"attention": "flash_attention_2"}, "device": "cuda", "memory": 8})
    made = plan.fitted(config, PlannedBase("tiny", Path(), tiny_config("gpt_oss"), "float32"), SMALL, ("lora",))
    assert "gpt_oss has no attention by flash_attention_2" in made.refused["lora"]


def is_accepted(config: PlanRun, method: str, device: str) -> bool:
    """Whether the settings go with the method's own command, and its run would begin with them."""
    shared = {"parallel": config.parallel.model_dump(), "schedule": config.schedule.model_dump()}
    if method not in ("full", "esft"):  # which train weights of the base
        shared["adapter"] = config.adapter.model_dump()
    try:
        run = RUNS[method].model_validate(shared)
    except ValidationError:
        return False
    if run.schedule.optimizer == "paged_adamw_8bit" and device == "cpu":
        return False
    if config.base.attention.startswith("flash") and (device == "cpu" or config.base.dtype == "float32"):
        return False
    return run.parallel.strategy == "ddp" or run.parallel.processes > 1


def nothing_needed(method: Any) -> MemoryEstimate:
    return MemoryEstimate(method, 1, {}, {"step": 1}, {}, 0, 0, SMALL, Parallel())


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
