"""A loop without a Trainer: its steps reach the callbacks, and its checkpoints are saved, kept and deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from dsr1_tune.align.online.steps import Steps
from dsr1_tune.config import PpoRun
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.arguments import to_arguments
from dsr1_tune.runs.trainer.callbacks import WholeCheckpoints


class Notes(TrainerCallback):
    """Notes what it is called for; can ask for an early end."""

    def __init__(self, stop_at: int = 0) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.stop_at = stop_at

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logged.append((state.global_step, logs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop_at:
            control.should_save = control.should_training_stop = True


def steps_in(folder: RunFolder, notes: Notes, num_steps: int, save_steps: int) -> Steps:
    """Steps of a run in `folder`; nothing is trained."""
    folder.begin(PpoRun(), "ppo")
    layer = torch.nn.Linear(1, 1)
    handler = CallbackHandler([notes, WholeCheckpoints(folder)], layer, None, None, None)
    args = to_arguments(PpoRun(), folder, torch.float32)
    watcher: Any = None
    return Steps(handler, args, TrainerState(max_steps=num_steps), TrainerControl(), watcher, folder, save_steps)


def save(folder: Path) -> None:
    (folder / "weights").write_text("saved")


def names_in(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_steps_log_each_step_and_keep_the_last_two_checkpoints(tmp_path: Path) -> None:
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    steps = steps_in(folder, notes, num_steps=7, save_steps=2)
    for step in steps.remaining():
        steps.end_step({"loss": 1.0 / step}, epoch=step / 7, save=save)
    assert notes.logged == [(step, {"loss": 1.0 / step}) for step in range(1, 8)]
    assert names_in(folder) == ["checkpoint-6", "checkpoint-7"]
    assert all(folder.is_whole(step) for step in (6, 7)) and steps.state.epoch == 1.0


def test_steps_end_early_with_a_checkpoint_where_a_callback_asks(tmp_path: Path) -> None:
    folder, notes = RunFolder(tmp_path / "run"), Notes(stop_at=3)
    steps = steps_in(folder, notes, num_steps=7, save_steps=100)
    for step in steps.remaining():
        steps.end_step({"loss": 0.0}, epoch=step / 7, save=save)
    assert steps.state.global_step == 3 and names_in(folder) == ["checkpoint-3"]


def test_steps_do_not_count_half_written_checkpoints_among_those_kept(tmp_path: Path) -> None:
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    steps = steps_in(folder, notes, num_steps=2, save_steps=1)
    (folder.checkpoints / "checkpoint-9").mkdir(parents=True)
    for step in steps.remaining():
        steps.end_step({"loss": 0.0}, epoch=step / 2, save=save)
    assert names_in(folder) == ["checkpoint-1", "checkpoint-2"]
    (folder.checkpoints / "checkpoint-2" / "weights").unlink()
    steps.save(save)
    assert not (folder.checkpoints / "checkpoint-2" / "weights").exists(), "there is one of this step already"
