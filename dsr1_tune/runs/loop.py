"""The training loop's surroundings: watcher, log, progress bar, Ctrl-C, trackers, checkpoints and rollback.

A run has one `Loop`, whichever code takes its steps: a TRL trainer (`Loop.train`), or a method's own update rule inside
`Loop.watching`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from dsr1_tune.config import TuneRun
from dsr1_tune.errors import ModelError
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.distributed.unshard import number_formats, unshard
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.trainer.callbacks import GracefulStop, GradientCheck, ProgressBar, TrainLog, WholeCheckpoints
from dsr1_tune.runs.trainer.trainer import Resumable
from dsr1_tune.runs.watch.rollback import RollBack, roll_back, set_suspects_aside
from dsr1_tune.runs.watch.trackers import open_trackers
from dsr1_tune.runs.watch.watcher import Watcher

MakeTrainer = Callable[[list[TrainerCallback]], Resumable]
"""Builds the trainer that is to take the steps, with these callbacks."""


@dataclass(frozen=True)
class Watching:
    """The callbacks of a training loop that is running; the watcher is the first of them."""

    watcher: Watcher
    callbacks: list[TrainerCallback]


@dataclass(frozen=True)
class Loop:
    """What surrounds the training steps of one run, the same for every method."""

    config: TuneRun
    folder: RunFolder
    narrator: Narrator
    watches_loss: bool = True
    """Whether the size of the training loss says how the run is going."""

    def train(self, model: Any, make_trainer: MakeTrainer, evaluate: Callable[[Any], float]) -> int:
        """Run a trainer to its end, from the latest checkpoint where there is one; returns the number of steps.

        `evaluate` measures the held-out loss that the watcher follows. A run with watch.on_alarm=rollback is rolled
        back once. Raises KeyboardInterrupt after a Ctrl-C, StoppedByAlarm, and ModelError for lack of GPU memory.
        """
        formats = number_formats(model)
        try:
            num_steps = self._run_trainer(model, make_trainer, evaluate)
        except RollBack as fault:
            unshard(model, formats)
            self.narrator.say(roll_back(model, self.folder, fault))
            num_steps = self._run_trainer(model, make_trainer, evaluate)
        unshard(model, formats)
        return num_steps

    def _run_trainer(self, model: Any, make_trainer: MakeTrainer, evaluate: Callable[[Any], float]) -> int:
        checkpoint = self.checkpoint_to_resume()
        with self.watching(model, checkpoint, evaluate) as watching:
            trainer = make_trainer([GradientCheck(), *watching.callbacks])
            trainer.before_clipping = watching.watcher.before_clipping
            trainer.remove_callback(PrinterCallback)
            self.announce_resume(checkpoint)
            try:
                with within_memory(
                    "lower schedule.batch_size (and raise schedule.gradient_accumulation_steps), schedule.max_tokens "
                    "or adapter.rank"
                ):
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finally:
                trainer.close()
        num_steps = int(trainer.state.global_step)
        trainer.accelerator.free_memory()
        # accelerate leaves its mixed precision around forward; the model is evaluated after as it was before.
        for name in ("forward", "_original_forward"):
            vars(model).pop(name, None)
        return num_steps

    def checkpoint_to_resume(self) -> Path | None:
        """The newest whole checkpoint, once those that an alarm has made suspect are set aside."""
        set_suspects_aside(self.folder)
        return group.from_main(self.folder.latest_checkpoint)

    def announce_resume(self, checkpoint: Path | None) -> None:
        """Print which checkpoint the run goes on from, if any."""
        if checkpoint:
            self.narrator.say(f"going on from {checkpoint}")

    @contextmanager
    def watching(
        self, model: Any, checkpoint: Path | None, evaluate: Callable[[Any], float] = lambda model: float("nan")
    ) -> Iterator[Watching]:
        """Watch the training steps taken inside; raises KeyboardInterrupt or StoppedByAlarm where one ended them."""
        stop = GracefulStop(self.narrator.say)
        bar = ProgressBar(self.narrator.console)
        watcher = Watcher(model, self.folder, self.config, self.narrator.say, evaluate, self.watches_loss)
        trackers = open_trackers(self.config, self.folder, first_step=step_of(checkpoint) + 1 if checkpoint else 0)
        log = [TrainLog(self.folder, watcher.log_fields)] if self.folder.is_written_here else []
        try:
            yield Watching(watcher, [watcher, stop, WholeCheckpoints(self.folder), bar, *log, *trackers])
        finally:
            bar.close()
            stop.give_back()
            watcher.close()
            for tracker in trackers:
                tracker.close()
        watcher.raise_if_stopped()
        if stop.was_requested:
            raise KeyboardInterrupt


@contextmanager
def within_memory(hint: str) -> Iterator[None]:
    """Turn running out of GPU memory in a training step into a ModelError with this hint."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError("the GPU's memory is not enough for a training step", hint=hint) from error
