"""What a training run calls at every step: the log, the progress bar, Ctrl-C, the gradient check, routers' balance."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from dsr1_tune.atomic import atomic_write
from dsr1_tune.models.trained.lora import check_gradients
from dsr1_tune.moe.anatomy import find_routers
from dsr1_tune.moe.monitor import RoutingMonitor, is_token
from dsr1_tune.moe.routing import move_biases
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.distributed.launch import takes_signals
from dsr1_tune.runs.folder import RunFolder

_SAME_PRESS_SECONDS = 1.0


class GradientCheck(TrainerCallback):
    """Stops the run at its first step if a part that is to be trained received no gradient."""

    def __init__(self) -> None:
        self._is_done = False
        self.is_due: Callable[[], bool] = lambda: True
        """Whether there is something to learn in this step; a trainer may say otherwise."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look once, when gradients are complete and not yet used."""
        if not self._is_done and self.is_due():
            self._is_done = check_gradients(model, may_overflow=args.fp16, all_gather=group.all_gather)


class TrainLog(TrainerCallback):
    """Appends every optimizer step's numbers to train_log.jsonl; steps that a resumed run repeats are replaced.

    `log_fields` gives further fields for the line of the step that is being logged.
    """

    def __init__(self, folder: RunFolder, log_fields: Callable[[], dict[str, Any]] = dict) -> None:
        self._folder = folder
        self._log_fields = log_fields

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Drop the lines of steps beyond the checkpoint that the run goes on from."""
        file = self._folder.log_file
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
        with atomic_write(file) as log:
            log.writelines(line for line in lines if _step_of(line) <= state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line per optimizer step."""
        if not is_step(logs):
            return
        numbers = {
            "step": state.global_step,
            "epoch": round(state.epoch or 0.0, 4),
            **{name: value for name, value in logs.items() if name != "epoch"},
            **self._log_fields(),
        }
        with self._folder.log_file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(numbers) + "\n")


def is_step(logs: Any) -> bool:
    """Whether these are a step's numbers, not the summary that the trainer gives in the end."""
    return bool(logs) and ("loss" in logs or "reward/mean" in logs)


def read_log(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of train_log.jsonl, but for a half-written one."""
    file = folder.log_file
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines if math.isfinite(_step_of(line))]


def _step_of(line: str) -> float:
    """The step that a line of the log is about; a half-written one counts as beyond every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class WholeCheckpoints(TrainerCallback):
    """Marks each checkpoint when it is completely written; only marked ones are resumed from."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Called after the last of its files; of several processes each writes some."""
        group.barrier()
        self._folder.mark_whole(state.global_step)


class GracefulStop(TrainerCallback):
    """Ctrl-C (or a cluster's SIGTERM) finishes the step, saves a checkpoint and stops; a second one stops at once.

    A run in another thread than the main one, such as that of a web server, leaves the signals to the program.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.was_requested = False
        self._requested_at = 0.0
        self._say = say
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM) if takes_signals() else ():
            self._before[number] = signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        is_same_press = time.monotonic() - self._requested_at < _SAME_PRESS_SECONDS
        if self.was_requested and group.world_size() > 1 and is_same_press:
            return  # torch's launcher passes on what the terminal has sent to every process already
        self._requested_at = time.monotonic()
        if self.was_requested:
            self.give_back()
            raise KeyboardInterrupt
        self.was_requested = True
        self._say("stopping: the step is finished and a checkpoint saved (press Ctrl-C again to stop at once)")

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop once requested; all processes after the same step, whichever received the signal."""
        self.was_requested = group.any_of(self.was_requested)
        if self.was_requested:
            control.should_save = True
            control.should_training_stop = True

    def give_back(self, *args: Any, **kwargs: Any) -> None:
        """Restore the signal handlers that were there before."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    on_train_end = give_back


class ProgressBar(TrainerCallback):
    """A bar with loss (or reward) and tokens per second; where the output is no terminal, a line now and then.

    Those are the first step's, which tells how long all will take, and every tenth of the steps.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self._bar.start()
        self._first_step, self._begin = state.global_step + 1, time.perf_counter()
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, text="")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Say where the reward or the loss is."""
        if not is_step(logs):
            return
        speed = float(logs.get("num_tokens", 0.0)) / max(float(logs.get("seconds", 0.0)), 1e-9)
        # Of answers of its own, a model's loss tells nothing: it compares them with one another.
        name, value = ("reward", logs["reward/mean"]) if "reward/mean" in logs else ("loss", logs["loss"])
        text = f"{name} {float(value):.3f}  {speed:,.0f} tokens/s"
        self._bar.update(self._task, text=text)
        every = math.ceil(state.max_steps / 10)
        is_due = state.global_step % every == 0 or state.global_step in (self._first_step, state.max_steps)
        if not self._console.is_terminal and is_due:
            line = f"step {state.global_step}/{state.max_steps}  {text}{self._left(state)}"
            self._console.print(line, highlight=False, soft_wrap=True)

    def _left(self, state: TrainerState) -> str:
        """How long the steps that are left will take, at the pace so far."""
        pace = (time.perf_counter() - self._begin) / max(1, state.global_step - self._first_step + 1)
        left = round(pace * (state.max_steps - state.global_step))
        return f"  about {timedelta(seconds=left)} left" if state.global_step < state.max_steps else ""

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Stop drawing, and leave the bar as it stands; also when training ended by an error."""
        self._bar.stop()

    on_train_end = close


class BiasRule(TrainerCallback):
    """After every optimizer step: b_e += rate · sign(mean load - load of e), by the loads of the step just done."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._monitor: RoutingMonitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin to count."""
        self.close()
        self._routers = find_routers(model)
        self._monitor = RoutingMonitor(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was routed since the last step, as in an evaluation, does not count."""
        if self._monitor:
            self._monitor.take()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the biases, before a checkpoint is written."""
        if self._monitor:
            move_biases(self._routers, self._monitor.take(of_all_processes=True).load_LE, self._rate)

    def close(self, *args: Any, **kwargs: Any) -> None:
        """Stop counting; also when training ended by an error."""
        if self._monitor:
            self._monitor.close()
            self._monitor = None

    on_train_end = close


def real_tokens(inputs: dict[str, Any]) -> Tensor:
    """Which tokens of a batch are no padding, one after the other (T,)."""
    mask = inputs.get("attention_mask")
    is_real_BT: Tensor = is_token(inputs["position_ids"]) if mask is None else mask != 0
    return is_real_BT.reshape(-1)
