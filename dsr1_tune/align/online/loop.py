"""A training loop of our own, watched like the others: log, bar, trackers, alarms, Ctrl-C and checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.session import Session, compute_dtype
from dsr1_tune.runs.trainer.arguments import to_arguments
from dsr1_tune.runs.trainer.callbacks import GracefulStop, ProgressBar, TrainLog, WholeCheckpoints
from dsr1_tune.runs.watch.trackers import open_trackers
from dsr1_tune.runs.watch.watcher import Watcher

NUM_KEPT = 2


@dataclass
class Steps:
    """The steps of a loop, told to transformers' callbacks as its Trainer would."""

    handler: CallbackHandler
    args: Any
    state: TrainerState
    control: TrainerControl
    watcher: Watcher
    folder: RunFolder
    save_steps: int

    @property
    def checkpoints(self) -> Path:
        """Where they are saved."""
        return self.folder.checkpoints

    def remaining(self) -> Iterator[int]:
        """The numbers of the steps to come, from 1; ends early after Ctrl-C or an alarm that stops the run."""
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.control = self.handler.on_step_begin(self.args, self.state, self.control)
            yield self.state.global_step + 1

    def done(self, numbers: dict[str, Any], epoch: float, save: Callable[[Path], None]) -> None:
        """A step is done: its numbers are judged and logged, and a checkpoint saved where one is due."""
        self.state.global_step += 1
        self.state.epoch = epoch
        self.control = self.handler.on_step_end(self.args, self.state, self.control)
        self.control = self.handler.on_log(self.args, self.state, self.control, numbers)
        is_due = self.state.global_step % self.save_steps == 0 or self.state.global_step == self.state.max_steps
        if is_due or self.control.should_save:
            self.save(save)

    def save(self, save: Callable[[Path], None]) -> None:
        """A checkpoint of what the steps done so far have come to."""
        folder = self.checkpoints / f"checkpoint-{self.state.global_step}"
        if self.state.global_step == 0 or self.folder.is_whole(self.state.global_step):
            return
        folder.mkdir(parents=True, exist_ok=True)
        group.from_main(lambda: save(folder))
        self.control = self.handler.on_save(self.args, self.state, self.control)
        self.control.should_save = False
        group.from_main(self._forget_old)

    def _forget_old(self) -> None:
        """Those that were broken off while they were written do not count among the kept."""
        known = sorted(self.checkpoints.glob("checkpoint-*"), key=step_of)
        whole = [folder for folder in known if self.folder.is_whole(step_of(folder))]
        for folder in set(known) - set(whole[-NUM_KEPT:]):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def watched(
    session: Session[Any], model: Any, optimizer: Any, scheduler: Any, num_steps: int, checkpoint: Path | None
) -> Iterator[Steps]:
    """Around the loop; raises KeyboardInterrupt or StoppedByAlarm where one of them ended it."""
    config, folder = session.config, session.folder
    stop = GracefulStop(session.narrator.say)
    bar = ProgressBar(session.narrator.console)
    watcher = Watcher(model, folder, config.watch, session.narrator.say, lambda now: float("nan"), judges_loss=False)
    first = step_of(checkpoint) if checkpoint else 0
    trackers = open_trackers(config, folder, first_step=first + 1 if checkpoint else 0)
    callbacks: list[TrainerCallback] = [watcher, stop, WholeCheckpoints(folder), bar]
    callbacks += [TrainLog(folder, watcher.beside)] if session.is_main else []
    args = to_arguments(config, folder, compute_dtype(model))
    handler = CallbackHandler([*callbacks, *trackers], model, session.base.tokenizer, optimizer, scheduler)
    state = TrainerState(
        global_step=first,
        max_steps=num_steps,
        logging_steps=1,
        save_steps=config.schedule.save_steps,
        is_world_process_zero=session.is_main,
        is_local_process_zero=session.is_main,
    )
    steps = Steps(handler, args, state, TrainerControl(), watcher, folder, config.schedule.save_steps)
    try:
        steps.control = handler.on_train_begin(args, state, steps.control)
        yield steps
        handler.on_train_end(args, state, steps.control)
    finally:
        bar.close()
        stop.give_back()
        watcher.close()
        for tracker in trackers:
            tracker.close()
    watcher.raise_if_stopped()
    if stop.was_asked:
        raise KeyboardInterrupt
