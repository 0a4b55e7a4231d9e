"""Watches a training run: completes each step's metrics, checks them, and acts when there is an alarm.

The watcher comes before every other callback, so that the log, the bar and the trackers all see the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from dsr1_tune.config import TuneRun
from dsr1_tune.models.memory import GIB
from dsr1_tune.moe.anatomy import Anatomy, Part
from dsr1_tune.moe.monitor import Routing, RoutingMonitor, uncounted
from dsr1_tune.moe.shared_factors import find_shared
from dsr1_tune.runs.distributed import group as processes
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.callbacks import read_log
from dsr1_tune.runs.watch import rollback
from dsr1_tune.runs.watch.alarms import Alarm, Kind, Numbers, advise
from dsr1_tune.runs.watch.detectors import Watchdog, Window
from dsr1_tune.runs.watch.expert_tables import ExpertTables, note_routing

WINDOW = 20
"""The expert statistics of a step are those of so many steps up to it: a single one holds too few tokens to tell."""


@contextmanager
def noting_routing(model: nn.Module, folder: RunFolder, stage: str) -> Iterator[None]:
    """What the model routes inside, in all processes together, becomes the run's profile of `stage`: before or after
    training.
    """
    with closing(RoutingMonitor(model)) as monitor:
        yield
        routing = monitor.take(of_all_processes=True)
    if routing.layers and processes.is_main():
        note_routing(folder.path, **{stage: routing})


class Watcher(TrainerCallback):
    """Adds metrics that the trainer does not have to each step, and checks all of them for faults.

    `evaluate` measures the held-out loss of the model it is given; `say` prints a line. Raises `RollBack` out of the
    training loop where an alarm is to be answered so; after training, `raise_if_stopped` tells if one ended it.
    """

    def __init__(
        self,
        model: nn.Module,
        folder: RunFolder,
        config: TuneRun,
        say: Callable[[str], None],
        evaluate: Callable[[nn.Module], float],
        watches_loss: bool = True,
    ) -> None:
        self._folder = folder
        self._config = config
        self._say = say
        self._evaluate = evaluate
        self._watches_loss = watches_loss
        self._model = model
        self._monitor = RoutingMonitor(model)
        self._gradients = GradientNorms()
        self._base: Routing | None = None
        self._window = Window(WINDOW)
        self._training: Routing | None = None
        self._begin = self._step_begin = time.perf_counter()
        self._earlier_tokens = self._earlier_seconds = self._tokens = 0.0
        self._was_rolled_back = False
        self._stopped_by: Alarm | None = None
        self.new_alarms: list[Alarm] = []

    def before_clipping(self, scale: float = 1.0) -> None:
        """The trainer calls it when a step's gradients are complete; `scale` is float16's."""
        self._gradients.measure(self._model, scale)

    def log_fields(self) -> dict[str, Any]:
        """Fields of this step's line in the log besides its metrics: its alarms."""
        return {"alarms": [alarm.as_json() for alarm in self.new_alarms]} if self.new_alarms else {}

    def on_train_begin(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Take up the counts, and the detectors' memory, where the checkpoint left them."""
        step, checkpoint = state.global_step, self._folder.checkpoint(state.global_step)
        past = processes.from_main(lambda: _Past.read(self._folder, checkpoint if step else None))
        lines = [line for line in past.lines if line["step"] <= step]
        if lines:
            self._earlier_tokens = self._tokens = float(lines[-1].get("num_tokens", 0.0))
            self._earlier_seconds = float(lines[-1].get("seconds", 0.0))
        self._base, self._training, self._was_rolled_back = past.base, past.training, past.was_rolled_back
        self._watchdog = Watchdog(self._base, may_overflow=args.fp16, watches_loss=self._watches_loss)
        # Single steps' routing is not in the log.
        self._watchdog.replay([_numbers_of(line, line["step"]) for line in lines], past.reported)
        rollback.change_learning_rate(past.change_of_rate, optimizer, lr_scheduler)
        if self._config.watch.on_alarm == "rollback" and step == 0 and processes.is_main():
            rollback.keep_start(self._model, self._folder)
        self._monitor.take()
        self._begin = self._step_begin = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock."""
        self._step_begin = time.perf_counter()

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Complete the step's metrics, check them, and act on alarms."""
        self.new_alarms = []
        if not logs or "loss" not in logs:
            return
        routing = self._monitor.take(of_all_processes=True)
        self._complete(logs, routing)
        every = self._config.watch.eval_steps
        if every and state.global_step % every == 0:
            logs["eval_loss"] = self._held_out_loss()
        numbers = _numbers_of(logs, state.global_step, routing if routing.layers else None)
        self.new_alarms = [
            replace(alarm, advice=advise(alarm.what, self._config)) for alarm in self._watchdog.check(numbers)
        ]
        if self.new_alarms:
            self._act(self.new_alarms, state, control)

    def _complete(self, logs: dict[str, Any], routing: Routing) -> None:
        """Time, tokens, memory, gradients by group and experts."""
        now = time.perf_counter()
        tokens = self._earlier_tokens + float(logs.get("num_tokens", 0.0))
        logs["num_tokens"] = tokens
        logs["seconds"] = round(self._earlier_seconds + now - self._begin, 3)
        logs["tokens_per_second"] = round((tokens - self._tokens) / max(now - self._step_begin, 1e-9), 1)
        self._tokens = tokens
        logs["memory/rss_gib"] = round(psutil.Process().memory_info().rss / GIB, 3)
        if torch.cuda.is_available():
            logs["memory/cuda_peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        logs |= {f"grad_norm/{group}": norm for group, norm in self._gradients.take().items()}
        if routing.layers:
            self._training = routing if self._training is None else self._training + routing
            logs |= _expert_numbers(self._window.add(routing), self._base)

    def _held_out_loss(self) -> float:
        with uncounted():
            loss = self._evaluate(self._model)
        # All processes act on one number: what differs in its last digit may fall on either side of a limit.
        return processes.from_main(lambda: loss)

    def _act(self, alarms: list[Alarm], state: TrainerState, control: TrainerControl) -> None:
        """Print and record alarms, and stop or roll back as watch.on_alarm says."""
        answer = self._config.watch.on_alarm
        if answer == "rollback" and self._was_rolled_back:
            answer = "stop"
        for kind in dict.fromkeys(alarm.what for alarm in alarms):
            first, *more = [alarm for alarm in alarms if alarm.what == kind]
            self._say(f"ALARM: {first}" + (f" (also: {', '.join(alarm.where for alarm in more)})" if more else ""))
        rollback.note(self._folder, alarms, state.global_step, answer)
        if answer == "stop":
            self._stopped_by = alarms[0]
            # At once: the trainer keeps few checkpoints, and what it saves now must not push a good one out.
            rollback.set_suspects_aside(self._folder)
            rollback.note_last_good(self._folder, alarms)
            control.should_save = True
            control.should_training_stop = True
        elif answer == "rollback":
            raise rollback.RollBack(alarms[0], state.global_step)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Put the counts into the checkpoint, before it is marked as whole."""
        if processes.is_main():
            checkpoint = self._folder.checkpoint(state.global_step)
            rollback.note_learning_rate(self._folder, checkpoint)
            if self._training is not None:
                ExpertTables(training=self._training).write(checkpoint)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the counts in the run folder."""
        if processes.is_main() and self._training is not None:
            note_routing(self._folder.path, training=self._training)

    def close(self) -> None:
        """Stop counting; also when training ended by an error."""
        self._monitor.close()

    def raise_if_stopped(self) -> None:
        """Raise StoppedByAlarm if an alarm ended the training."""
        if self._stopped_by is not None:
            rollback.set_suspects_aside(self._folder)
            raise rollback.StoppedByAlarm(self._stopped_by, self._folder)


@dataclass(frozen=True)
class _Past:
    """What a run that goes on must know of itself."""

    lines: list[dict[str, Any]]
    base: Routing | None
    training: Routing | None
    reported: list[tuple[Kind, str]]
    was_rolled_back: bool
    change_of_rate: float

    @classmethod
    def read(cls, folder: RunFolder, checkpoint: Path | None) -> _Past:
        change_of_rate = rollback.wanted_rate(folder) / rollback.rate_of(checkpoint)
        lines, training = (read_log(folder), ExpertTables.read(checkpoint).training) if checkpoint else ([], None)
        alarms = rollback.reported(folder), rollback.was_rolled_back(folder)
        return cls(lines, ExpertTables.read(folder.path).before, training, *alarms, change_of_rate)


def _numbers_of(logs: dict[str, Any], step: int, routing: Routing | None = None) -> Numbers:
    norms = {
        name.removeprefix("grad_norm/"): float(norm) for name, norm in logs.items() if name.startswith("grad_norm/")
    }
    norms = {"all": float(logs["grad_norm"]), **norms} if "grad_norm" in logs else {}
    return Numbers(step, float(logs.get("loss", math.nan)), norms, logs.get("eval_loss"), routing)


def _expert_numbers(window: Routing, base: Routing | None) -> dict[str, float]:
    entropy_L = window.entropy_L
    numbers = {
        "experts/entropy_min": float(entropy_L.min()),
        "experts/entropy_mean": float(entropy_L.mean()),
        "experts/max_violation_max": float(window.max_violation_L.max()),
        "experts/dead": int(window.dead_LE.sum()),
    }
    if base is not None and base.layers == window.layers:
        numbers["experts/drift_max"] = float(window.drift_L(base).max())
    return {name: round(number, 5) for name, number in numbers.items()}


class GradientNorms:
    """L2 norms by group, taken before gradients are clipped and read once a step."""

    def __init__(self) -> None:
        self._trained: list[tuple[Part, nn.Parameter]] = []
        self._groups: list[Part] = []
        self._shared: set[int] = set()
        self._squares_G: Tensor | None = None

    @torch.no_grad()
    def measure(self, model: nn.Module, scale: float = 1.0) -> None:
        """Call it with complete gradients; `scale` is what float16's loss was multiplied by."""
        if not self._trained:
            part_of = Anatomy(model)
            self._trained = [(part_of(name), one) for name, one in model.named_parameters() if one.requires_grad]
            self._groups = sorted({part for part, _ in self._trained})
            self._shared = {id(factor.parameter) for factor in find_shared(model)}
        found = [(one, one.grad, self._groups.index(part)) for part, one in self._trained if one.grad is not None]
        self._squares_G = None
        if not found:
            return
        # Of a weight that is shared out among processes each sums up its own part.
        is_shared = [id(one) in self._shared or hasattr(gradient, "to_local") for one, gradient, _ in found]
        local = [_local(gradient) for _, gradient, _ in found]
        device = local[0].device
        norms = torch._foreach_norm(local, 2, dtype=torch.float32)
        norm_P = torch.stack([norm.to(device) for norm in norms]).double() / scale
        squares_2G = torch.zeros(2, len(self._groups), dtype=torch.float64, device=device)
        row_P, group_P = torch.tensor([[*is_shared], [group for *_, group in found]], dtype=torch.int64, device=device)
        squares_2G.index_put_((row_P, group_P), norm_P.square(), accumulate=True)
        if any(is_shared) and torch.distributed.is_initialized():
            torch.distributed.all_reduce(squares_2G[1])
        self._squares_G = squares_2G.sum(0)

    def take(self) -> dict[str, float]:
        """The norms of the last measurement, by group; empty if there was none."""
        if self._squares_G is None:
            return {}
        norms = self._squares_G.sqrt().tolist()
        self._squares_G = None
        return dict(zip(self._groups, norms, strict=True))


def _local(gradient: Any) -> Tensor:
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local.coalesce().values() if local.is_sparse else local
