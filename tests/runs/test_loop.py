"""The loop around the training steps: log, trackers, Ctrl-C, checkpoints, and resuming to the same numbers."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from dsr1_tune.config import GROUPS
from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.runs.folder import RunFolder
from tests.lora_runs import (
    NUM_STEPS,
    ConfigureLora,
    FinishedRun,
    Told,
    curve_of,
    go,
    go_on,
    in_a_notebook,
    in_a_thread,
    litter,
    log_of,
    losses_on_tensorboard,
    press,
)


def test_train_log_has_a_line_for_every_step(lora_run: FinishedRun) -> None:
    log = log_of(lora_run.path)
    assert [line["step"] for line in log] == list(range(1, NUM_STEPS + 1))
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["seconds"] > 0 for line in log)
    rates = [line["learning_rate"] for line in log]
    assert max(rates) == pytest.approx(1e-2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert log[-1]["epoch"] == 2


def test_tensorboard_has_the_losses_of_the_train_log(lora_run: FinishedRun) -> None:
    assert losses_on_tensorboard(lora_run.path) == pytest.approx(
        {line["step"]: line["loss"] for line in log_of(lora_run.path)}
    )


@pytest.mark.usefixtures("survivor")
@pytest.mark.parametrize(
    ("step", "number"), [(2, signal.SIGINT), (6, signal.SIGTERM), (4, signal.SIGINT)], ids=["int", "term", "epoch-end"]
)
def test_run_stopped_by_a_signal_resumes_with_the_same_steps(
    configure_lora: ConfigureLora, lora_run: FinishedRun, at_step: Any, tmp_path: Path, step: int, number: int
) -> None:
    told, path = Told(), tmp_path / "run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    at_step(step, press(number))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(path), told=told)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    folder, checkpoint = RunFolder(path), path / "checkpoints" / f"checkpoint-{step}"
    assert folder.manifest()["status"] == "interrupted"
    assert folder.latest_checkpoint() == checkpoint
    assert [line["step"] for line in log_of(path)] == list(range(1, step + 1))
    assert "press Ctrl-C again" in told.text and f"dsr1-tune lora --resume {path}" in told.text
    assert not folder.adapter.exists()
    assert not litter(path)

    told = Told()
    assert go_on(path, told) == folder
    assert f"going on from {checkpoint}" in told.text
    assert curve_of(path) == pytest.approx(curve_of(lora_run.path), abs=1e-6)
    assert losses_on_tensorboard(path) == pytest.approx(losses_on_tensorboard(lora_run.path), abs=1e-6)
    for when in ("before", "after"):
        assert folder.evaluation()[when]["loss"] == pytest.approx(lora_run.folder.evaluation()[when]["loss"], abs=1e-6)
    assert folder.evaluation()["answers_before"] == lora_run.folder.evaluation()["answers_before"]
    assert folder.manifest()["status"] == "finished"
    assert folder.manifest()["metrics"]["num_steps"] == NUM_STEPS


@pytest.mark.parametrize("place", [in_a_thread, in_a_notebook])
def test_a_run_is_the_same_wherever_it_is_called(
    lora_run: FinishedRun, configure_lora: ConfigureLora, tmp_path: Path, place: Any
) -> None:
    before = signal.getsignal(signal.SIGINT)
    folder = place(lambda: go(configure_lora(tmp_path / "run")))
    assert folder.manifest()["status"] == "finished"
    assert curve_of(folder.path) == curve_of(lora_run.path)
    assert signal.getsignal(signal.SIGINT) is before


def test_second_ctrl_c_stops_at_once(
    configure_lora: ConfigureLora, lora_run: FinishedRun, at_step: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    at_step(4, press(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(path, save_steps=2))
    assert signal.getsignal(signal.SIGINT) is handler
    folder = RunFolder(path)
    assert folder.manifest()["status"] == "interrupted"
    # The fourth step was not finished; what counts is the checkpoint before it, and the third is done again.
    assert [line["step"] for line in log_of(path)] == [1, 2, 3]
    assert folder.latest_checkpoint() == path / "checkpoints" / "checkpoint-2"
    go_on(path)
    assert curve_of(path) == pytest.approx(curve_of(lora_run.path), abs=1e-6)
    assert losses_on_tensorboard(path).keys() == set(range(1, NUM_STEPS + 1))


def test_run_stopped_before_any_checkpoint_starts_over(
    configure_lora: ConfigureLora, lora_run: FinishedRun, at_step: Any, tmp_path: Path
) -> None:
    at_step(2, press(signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(tmp_path / "run"))
    assert RunFolder(tmp_path / "run").latest_checkpoint() is None
    told = Told()
    go_on(tmp_path / "run", told)
    assert "going on from" not in told.text
    assert curve_of(tmp_path / "run") == curve_of(lora_run.path)


@pytest.mark.parametrize("max_steps", [0, 3], ids=["at the end of an epoch", "within an epoch"])
def test_run_stopped_after_its_last_step_trains_no_further(
    configure_lora: ConfigureLora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, max_steps: int
) -> None:
    config = configure_lora(tmp_path / "run", max_steps=max_steps, samples=0)
    save = PeftModel.save_pretrained

    def stop_at_the_adapter(model: Any, folder: str, **given: Any) -> None:
        save(model, folder, **given)
        if ".part" in folder:
            raise KeyboardInterrupt

    monkeypatch.setattr(PeftModel, "save_pretrained", stop_at_the_adapter)
    with pytest.raises(KeyboardInterrupt):
        go(config)
    folder, num_steps = RunFolder(tmp_path / "run"), max_steps or NUM_STEPS
    assert folder.manifest()["status"] == "interrupted"
    assert not folder.adapter.exists() and not litter(folder.path)
    curve = curve_of(folder.path)
    monkeypatch.undo()
    go_on(folder.path)
    assert curve_of(folder.path) == curve
    assert folder.manifest()["metrics"]["num_steps"] == len(log_of(folder.path)) == num_steps
    assert folder.evaluation()["after"]["loss"] < folder.evaluation()["before"]["loss"]


def test_half_written_checkpoint_is_ignored(
    configure_lora: ConfigureLora, lora_run: FinishedRun, at_step: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    at_step(2, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(path))
    half = path / "checkpoints" / "checkpoint-5"
    shutil.copytree(path / "checkpoints" / "checkpoint-2", half)
    (half / ".whole").unlink()
    (half / "adapter_model.safetensors").write_bytes(b"half of it")
    (path / "train_log.jsonl").open("a").write('{"step": 3, "lo')
    told = Told()
    go_on(path, told)
    assert "checkpoint-2" in told.text
    assert curve_of(path) == pytest.approx(curve_of(lora_run.path), abs=1e-6)


@pytest.mark.parametrize("group", GROUPS)
def test_group_without_gradient_stops_the_run_at_its_first_step(
    configure_lora: ConfigureLora, changed_lora: Any, tmp_path: Path, group: str
) -> None:
    models: list[PeftModel] = []

    def cut_off(model: PeftModel) -> None:
        models.append(model)
        part_of = Anatomy(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and part_of(name) == group:
                parameter.register_hook(torch.zeros_like)

    changed_lora(cut_off)
    with pytest.raises(ModelError, match=f"no gradient: {group};") as caught:
        go(configure_lora(tmp_path / "run", samples=0))
    assert "adapter.groups" in caught.value.hint
    manifest = RunFolder(tmp_path / "run").manifest()
    assert manifest["status"] == "failed" and group in manifest["error"]
    assert log_of(tmp_path / "run") == []
    assert not any(weight.any() for name, weight in models[0].named_parameters() if ".lora_B" in name)
    assert not (tmp_path / "run" / "adapter").exists() and not litter(tmp_path / "run")


def test_gradient_that_is_not_finite_stops_the_run(
    configure_lora: ConfigureLora, changed_lora: Any, tmp_path: Path
) -> None:
    def spoil(model: PeftModel) -> None:
        parameter = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        parameter.register_hook(lambda gradient: gradient * float("nan"))

    changed_lora(spoil)
    with pytest.raises(ModelError, match="is not finite"):
        go(configure_lora(tmp_path / "run", samples=0))
