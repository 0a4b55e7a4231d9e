"""What an alarm leaves behind: a run rolled back once, or stopped and resumed from before the fault."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from dsr1_tune.config import LoraRun, Watch
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.watch.rollback import StoppedByAlarm
from dsr1_tune.train import lora
from tests.runs.watch.conftest import Fault, Told, log_of, spoiled_answers, watched_config


def test_run_stopped_by_an_alarm_resumes_from_before_the_fault(
    tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    path = tmp_path / "run"
    sabotage(spoiled_answers)
    with pytest.raises(StoppedByAlarm):
        lora.run(watched_config(path, tiny_base, many_sums, Watch(on_alarm="stop")), console=Told())
    stopped_at = log_of(path)[-1]["step"]
    names = {place.name for place in (path / "checkpoints").iterdir()}
    assert f"suspect-{stopped_at}" in names and "checkpoint-16" in names
    assert not {f"checkpoint-{step}" for step in range(24, 41)} & names
    sabotage(nothing)
    told = Told()
    folder = lora.run(LoraRun(), path, told)
    assert "checkpoint-16" in told.text
    assert folder.manifest()["status"] == "finished"
    assert [line["step"] for line in log_of(path)] == list(range(1, 41))


def nothing(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
    pass


def only_once(fault: Fault) -> Fault:
    """The fault, until a step is done again."""
    last, is_healed = 0, False

    def put_in(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
        nonlocal last, is_healed
        is_healed = is_healed or step <= last
        last = step
        if not is_healed:
            fault(model, step, batch)

    return put_in


def test_rollback_goes_back_once_with_half_the_learning_rate(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(only_once(spoiled_answers))
    told = Told()
    config = watched_config(tmp_path / "run", tiny_base, many_sums, Watch(on_alarm="rollback"))
    folder = lora.run(config, console=told)
    rolled_back = folder.manifest()["rollback"]
    assert (rolled_back["to_step"], rolled_back["learning_rate_factor"]) == (16, 0.5)
    assert f"steps 17 to {rolled_back['from_step']} are done again" in told.text
    log, undisturbed = log_of(folder.path), log_of(healthy[0].path)
    assert [line["step"] for line in log] == list(range(1, 41))
    rates, wanted = ([line["learning_rate"] for line in lines] for lines in (log, undisturbed))
    assert rates[:16] == pytest.approx(wanted[:16])
    assert rates[16:] == pytest.approx([rate / 2 for rate in wanted[16:]])
    # The first step after is the same batch on the same weights: the loss is what it was without any fault.
    assert log[16]["loss"] == pytest.approx(undisturbed[16]["loss"], abs=1e-5)
    assert folder.manifest()["status"] == "finished"
    assert not list((folder.path / "checkpoints").glob("suspect-*"))


@pytest.mark.slow
def test_rollback_happens_once_and_a_second_alarm_stops(
    tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(spoiled_answers)
    told = Told()
    with pytest.raises(StoppedByAlarm):
        lora.run(watched_config(tmp_path / "run", tiny_base, many_sums, Watch(on_alarm="rollback")), console=told)
    manifest = RunFolder(tmp_path / "run").manifest()
    answers = [alarm["answer"] for alarm in manifest["alarms"]]
    assert answers[0] == "rollback" and answers[-1] == "stop" and manifest["status"] == "stopped by alarm"
    assert told.text.count("rolled back from") == 1


@pytest.mark.slow
def test_rollback_starts_over_where_no_checkpoint_is_old_enough(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    sabotage(only_once(spoiled_answers))
    told = Told()
    config = watched_config(tmp_path / "run", tiny_base, many_sums, Watch(on_alarm="rollback"), save_steps=100)
    folder = lora.run(config, console=told)
    assert "to the beginning" in told.text
    log, undisturbed = log_of(folder.path), log_of(healthy[0].path)
    assert log[0]["loss"] == undisturbed[0]["loss"]
    assert log[5]["learning_rate"] == pytest.approx(undisturbed[5]["learning_rate"] / 2)
    assert [line["step"] for line in log] == list(range(1, 41))


@pytest.mark.slow
def test_rollback_keeps_the_lower_rate_after_a_resume(
    healthy: tuple[RunFolder, str], tmp_path: Path, tiny_base: Path, many_sums: Path, sabotage: Callable[[Fault], None]
) -> None:
    broken = only_once(spoiled_answers)

    def fault(model: nn.Module, step: int, batch: dict[str, Any]) -> None:
        broken(model, step, batch)
        if step == 33:
            os.kill(os.getpid(), signal.SIGINT)

    sabotage(fault)
    with pytest.raises(KeyboardInterrupt):
        lora.run(watched_config(tmp_path / "run", tiny_base, many_sums, Watch(on_alarm="rollback")), console=Told())
    sabotage(nothing)
    folder = lora.run(LoraRun(), tmp_path / "run", Told())
    rates, wanted = ([line["learning_rate"] for line in log_of(path)][16:] for path in (folder.path, healthy[0].path))
    assert rates == pytest.approx([rate / 2 for rate in wanted])


@pytest.mark.parametrize("strategy", ["fsdp2", "experts"])
def test_rollback_is_refused_with_sharded_weights(strategy: str) -> None:
    with pytest.raises(ValueError, match="rollback"):
        LoraRun.model_validate({"watch": {"on_alarm": "rollback"}, "parallel": {"strategy": strategy}})
