"""PPO's updates as steps of the run's training loop: transformers' callbacks are called as its Trainer calls them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.session import Session
from dsr1_tune.runs.trainer.arguments import compute_dtype, to_arguments
from dsr1_tune.runs.watch.watcher import Watcher

NUM_KEPT = 2
"""Whole checkpoints that are kept."""


@dataclass
class Steps:
    """The steps of a training loop without a Trainer, reported to callbacks as transformers' Trainer does."""

    handler: CallbackHandler
    args: Any
    state: TrainerState
    control: TrainerControl
    watcher: Watcher
    folder: RunFolder
    save_steps: int

    def remaining(self) -> Iterator[int]:
        """The numbers of the steps to come, from 1; ends early after Ctrl-C or an alarm that stops the run."""
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            self.control = self.handler.on_step_begin(self.args, self.state, self.control)
            yield self.state.global_step + 1

    def end_step(self, metrics: dict[str, Any], epoch: float, save: Callable[[Path], None]) -> None:
        """Report that a step is done and log its metrics; calls `save` with a folder where a checkpoint is due."""
        self.state.global_step += 1
        self.state.epoch = epoch
        self.control = self.handler.on_step_end(self.args, self.state, self.control)
        self.control = self.handler.on_log(self.args, self.state, self.control, metrics)
        is_due = self.state.global_step % self.save_steps == 0 or self.state.global_step == self.state.max_steps
        if is_due or self.control.should_save:
            self.save(save)

    def save(self, save: Callable[[Path], None]) -> None:
        """Save a checkpoint after the last step, unless there is one."""
        folder = self.folder.checkpoints / f"checkpoint-{self.state.global_step}"
        if self.state.global_step == 0 or self.folder.is_whole(self.state.global_step):
            return
        folder.mkdir(parents=True, exist_ok=True)
        group.from_main(lambda: save(folder))
        self.control = self.handler.on_save(self.args, self.state, self.control)
        self.control.should_save = False
        group.from_main(self._delete_old)

    def _delete_old(self) -> None:
        """Keep the last whole checkpoints; those whose writing was interrupted do not count among them."""
        known = sorted(self.folder.checkpoints.glob("checkpoint-*"), key=step_of)
        whole = [folder for folder in known if self.folder.is_whole(step_of(folder))]
        for folder in set(known) - set(whole[-NUM_KEPT:]):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def watched_steps(
    session: Session[Any], model: Any, optimizer: Any, scheduler: Any, num_steps: int, checkpoint: Path | None
) -> Iterator[Steps]:
    """The steps of a run inside its `Loop`; raises KeyboardInterrupt or StoppedByAlarm where one of them ended it."""
    config, folder = session.config, session.folder
    with session.loop.watching(model, checkpoint) as watching:
        handler = CallbackHandler(watching.callbacks, model, session.base.tokenizer, optimizer, scheduler)
        state = TrainerState(
            global_step=step_of(checkpoint) if checkpoint else 0,
            max_steps=num_steps,
            logging_steps=1,
            save_steps=config.schedule.save_steps,
            is_world_process_zero=session.is_main,
            is_local_process_zero=session.is_main,
        )
        args, control = to_arguments(config, folder, compute_dtype(model)), TrainerControl()
        steps = Steps(handler, args, state, control, watching.watcher, folder, config.schedule.save_steps)
        steps.control = handler.on_train_begin(args, state, steps.control)
        yield steps
        handler.on_train_end(args, state, steps.control)
