"""Trackers: TensorBoard's curves, and packages that are missing or take the numbers offline."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import TrainerState

from dsr1_tune.config import LoraRun, Watch
from dsr1_tune.errors import ConfigError
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.watch import trackers
from dsr1_tune.runs.watch.trackers import check_trackers
from dsr1_tune.train import lora
from tests.runs.watch.conftest import Told, log_of, watched_config


def test_tensorboard_has_the_watchers_numbers(healthy: tuple[RunFolder, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(healthy[0].tensorboard))
    events.Reload()
    log = log_of(healthy[0].path)
    for curve, name in (
        ("grad_norm/routed_experts", "grad_norm/routed_experts"),
        ("experts/entropy_mean", "experts/entropy_mean"),
        ("train/tokens_per_second", "tokens_per_second"),
        ("train/eval_loss", "eval_loss"),
    ):
        points = {point.step: point.value for point in events.Scalars(curve)}
        assert points == pytest.approx({line["step"]: line[name] for line in log if name in line}, rel=1e-5)


def test_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    check_trackers(Watch(trackers=("tensorboard",)))
    with pytest.raises(ConfigError, match="wandb") as caught:
        check_trackers(Watch(trackers=("tensorboard", "wandb")))
    assert "pip install 'dsr1-tune[wandb]'" in str(caught.value)


def test_tracker_that_is_missing_ends_the_run_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, many_sums: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    config = watched_config(tmp_path / "run", tmp_path / "no model here", many_sums, Watch(trackers=("trackio",)))
    with pytest.raises(ConfigError, match="trackio"):
        lora.run(config, console=Told())


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_online_tracker_takes_the_numbers_and_resumes(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config = LoraRun.model_validate({"watch": {"trackers": [package]}})
    folder = RunFolder(tmp_path / "run")
    folder.begin(config, "lora")
    for first_step in (1, 3):
        (tracker,) = trackers.open_trackers(config, folder, first_step)
        for step in range(first_step, first_step + 4):
            logs = {"loss": 1 / step, "grad_norm/attention": 0.5, "alarms": ["no number"]}
            tracker.on_log(None, TrainerState(global_step=step), None, logs=logs)
        tracker.close()
    assert any(path.is_file() for place in ("run/wandb", "trackio") for path in (tmp_path / place).rglob("*"))
