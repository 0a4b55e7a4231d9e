"""What an alarm leaves behind: notes in the manifest, checkpoints set aside, and the way back to a good one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from dsr1_tune.atomic import atomic_folder, atomic_write
from dsr1_tune.errors import RunError
from dsr1_tune.runs.distributed import group as processes
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.update import changing
from dsr1_tune.runs.watch.alarms import Alarm, Kind

STOPPED = "stopped by alarm"
LOWER = 0.5
"""What the learning rate is multiplied by when a run is rolled back."""
_RATE = "learning_rate.json"
_START = "start"


class RollBack(Exception):
    """Leaves the training loop, which is to go on from the last good checkpoint."""

    def __init__(self, alarm: Alarm, step: int) -> None:
        super().__init__(str(alarm))
        self.alarm = alarm
        self.step = step


class StoppedByAlarm(RunError):
    """An alarm ended the run; it can go on from the last checkpoint before the fault."""

    def __init__(self, alarm: Alarm, folder: RunFolder) -> None:
        go_on = (
            "; or --resume it as it is, from the last checkpoint before the fault: this alarm will not stop it again"
        )
        hint = "start a new run with what is to be tried" + (go_on if alarm.what != "nan_loss" else "")
        super().__init__(f"{folder.path}: stopped by an alarm: {alarm}", hint=hint)
        self.alarm = alarm


def note(folder: RunFolder, alarms: Sequence[Alarm], step: int, answer: str) -> None:
    """Write the alarms into the manifest."""
    known = folder.manifest().get("alarms", [])
    folder.update(alarms=[*known, *({**alarm.as_json(), "step": step, "answer": answer} for alarm in alarms)])
    if answer != "warn":
        note_last_good(folder, alarms)


def note_last_good(folder: RunFolder, alarms: Sequence[Alarm]) -> None:
    """Write down after which step checkpoints are not to be trusted, until they are set aside."""
    folder.update(last_good_step=min(alarm.last_good_step for alarm in alarms))


def reported(folder: RunFolder) -> list[tuple[Kind, str]]:
    """Kind and place of the alarms that are not to be reported again.

    What a run was rolled back for may come again: then it stops. A loss that is not a number always stops.
    """
    return [
        (alarm["what"], alarm["where"])
        for alarm in _manifest(folder).get("alarms", [])
        if alarm["answer"] != "rollback" and alarm["what"] != "nan_loss"
    ]


def was_rolled_back(folder: RunFolder) -> bool:
    """Whether the one rollback of this run has been used."""
    return "rollback" in _manifest(folder)


def roll_back(model: nn.Module, folder: RunFolder, fault: RollBack) -> str:
    """Prepare to go on from before the fault with a lower learning rate; returns what to tell the user.

    Raises StoppedByAlarm if nothing from before the fault is left.
    """
    set_suspects_aside(folder, keep=False)
    checkpoint = processes.from_main(folder.latest_checkpoint)
    if checkpoint is None and not processes.from_main((folder.checkpoints / _START).exists):
        raise StoppedByAlarm(fault.alarm, folder)
    if checkpoint is None:
        restore_start(model, folder)
    to_step = step_of(checkpoint) if checkpoint else 0
    folder.update(rollback={"from_step": fault.step, "to_step": to_step, "learning_rate_factor": LOWER})
    where = f"to the checkpoint of step {to_step}" if checkpoint else "to the beginning"
    return (
        f"rolled back from step {fault.step} {where}: steps {to_step + 1} to {fault.step} are done again with "
        f"{LOWER:g} × the learning rate; a second alarm stops the run"
    )


def set_suspects_aside(folder: RunFolder, keep: bool = True) -> None:
    """Checkpoints that may hold a fault get another name (or go), so that nothing goes on from them."""
    last_good = _manifest(folder).get("last_good_step")
    if last_good is None or not processes.is_main():
        return
    for checkpoint in folder.checkpoints.glob("checkpoint-*"):
        if step_of(checkpoint) > last_good:
            aside = checkpoint.with_name(f"suspect-{step_of(checkpoint)}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.replace(aside)
            if not keep:
                shutil.rmtree(aside, ignore_errors=True)
    folder.update(last_good_step=None)


def note_learning_rate(folder: RunFolder, checkpoint: Path) -> None:
    """Write into a checkpoint which share of the configured learning rate it was trained with."""
    with atomic_write(checkpoint / _RATE) as file:
        json.dump({"learning_rate_factor": wanted_rate(folder)}, file)


def rate_of(checkpoint: Path | None) -> float:
    """That share; all of it where nothing is noted."""
    try:
        return float(json.loads((checkpoint / _RATE).read_text())["learning_rate_factor"]) if checkpoint else 1.0
    except (OSError, ValueError, KeyError):
        return 1.0


def wanted_rate(folder: RunFolder) -> float:
    """The share of the configured learning rate that the run is to be trained with now."""
    return float(_manifest(folder).get("rollback", {}).get("learning_rate_factor", 1.0))


def change_learning_rate(change: float, optimizer: Any, scheduler: Any) -> None:
    """Multiply the learning rate, all along its schedule, of optimizer and scheduler as a checkpoint left them."""
    if change == 1.0:
        return
    for group in optimizer.param_groups:
        group["lr"] *= change
        if "initial_lr" in group:
            group["initial_lr"] *= change
    scheduler = getattr(scheduler, "scheduler", scheduler)
    scheduler.base_lrs = [rate * change for rate in scheduler.base_lrs]
    scheduler._last_lr = [rate * change for rate in scheduler._last_lr]


def keep_start(model: nn.Module, folder: RunFolder) -> None:
    """Write down what training is about to change, so that a rollback may begin anew."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in changing(model)}
    with atomic_folder(folder.checkpoints / _START) as part:
        save_file(tensors, str(part / "start.safetensors"))


def restore_start(model: nn.Module, folder: RunFolder) -> None:
    """Put the model back to where `keep_start` saw it."""
    tensors = load_file(str(folder.checkpoints / _START / "start.safetensors"))
    for name, tensor in changing(model):
        tensor.data.copy_(tensors[name])


def _manifest(folder: RunFolder) -> dict[str, Any]:
    return folder.manifest() if folder.manifest_file.exists() else {}
