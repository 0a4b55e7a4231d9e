"""Where the curves go besides train_log.jsonl: TensorBoard, Trackio, Weights & Biases."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback, TrainerState

from dsr1_tune.config import TuneRun, Watch
from dsr1_tune.errors import ConfigError
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder

_PROJECT = "dsr1-tune"
_EXTRAS = ("trackio", "wandb")


def check_trackers(watch: Watch) -> None:
    """Raise ConfigError if the package of a tracker is not installed."""
    if missing := [name for name in watch.trackers if name in _EXTRAS and find_spec(name) is None]:
        hint = f"pip install 'dsr1-tune[{','.join(missing)}]'"
        raise ConfigError(f"watch.trackers names {', '.join(missing)}, which is not installed", hint)


def open_trackers(config: TuneRun, folder: RunFolder, first_step: int) -> list[TrainerCallback]:
    """A callback for each of `config.watch.trackers`; only the process that writes has any.

    `first_step` is the step that comes first: what TensorBoard holds of it and later ones is done again.
    """
    names = dict.fromkeys(config.watch.trackers) if group.is_main() else ()
    return [
        TensorBoard(folder, first_step) if name == "tensorboard" else Online(name, config, folder) for name in names
    ]


class TensorBoard(TrainerCallback):
    """Every number of every step, as a curve of its name."""

    def __init__(self, folder: RunFolder, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=first_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One point of each curve."""
        for name, value in _curves(logs).items():
            self._writer.add_scalar(name, value, state.global_step)

    def close(self) -> None:
        """Write what is not yet written; also when training ended by an error."""
        self._writer.close()


class Online(TrainerCallback):
    """The same for Weights & Biases or Trackio, whose modules are used alike; a resumed run goes on in its own."""

    def __init__(self, package: str, config: TuneRun, folder: RunFolder) -> None:
        self._tracker = import_module(package)
        given: dict[str, Any] = {"project": _PROJECT, "name": folder.path.absolute().name, "resume": "allow"}
        if package == "wandb":
            started = "".join(character for character in str(folder.manifest().get("started")) if character.isdigit())
            given |= {"id": f"{given['name']}-{started}", "dir": str(folder.path)}
        self._tracker.init(**given, config=config.model_dump(mode="json"))
        if package == "wandb":
            # Steps that are done again would be dropped if the tracker's own count were the axis.
            self._tracker.define_metric("*", step_metric="step")
        self._knows_step = package == "trackio"

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One point of each curve."""
        curves = _curves(logs)
        if self._knows_step:
            self._tracker.log(curves, step=state.global_step)
        else:
            self._tracker.log({**curves, "step": state.global_step})

    def close(self) -> None:
        """Send what is not yet sent."""
        self._tracker.finish()


def _curves(logs: Any) -> dict[str, float]:
    """The numbers among what the trainer logs, with those that stand alone under train/."""
    numbers = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
    return {name if "/" in name else f"train/{name}": value for name, value in numbers.items()}
