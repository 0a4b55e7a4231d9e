"""`ppo`: proximal policy optimisation from rewards of the model's own answers (arXiv 1707.06347).

An update reads from top to bottom of `take_steps`: generate answers, score them, compute rewards and advantages, and
take a few passes over the answers. The reference policy of the KL penalty is the model as it began, and the values come
from a head on the same trunk: the base is in memory once. Of several processes each answers its share, and gradients
are summed.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.generate import Answers, generate
from dsr1_tune.align.online.learner import PpoLearner, experience_metrics
from dsr1_tune.align.online.policy import Policy, check_output
from dsr1_tune.align.online.session import PromptExample, RolloutSession
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import PpoRun
from dsr1_tune.errors import RunError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.moe.replay import check_replay
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.loop import within_memory
from dsr1_tune.runs.open_session import open_session
from dsr1_tune.runs.trainer.arguments import compute_dtype, to_arguments
from dsr1_tune.runs.watch.watcher import Watcher

NUM_KEPT = 2  # whole checkpoints


def run(config: PpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train with PPO as `config` says, or go on with `resume`; returns its folder. Raises as `open_session` does."""
    with open_session(config, "ppo", resume, console, kind=PpoSession) as session:
        session.check_rewards()
        if session.config.ppo.routing_replay:
            check_replay(meta_model(session.base.config))
        train_policy(session)
    return session.folder


class PpoSession(RolloutSession[PpoRun]):
    """A session whose steps are PPO's updates; all else is as in other alignment methods."""

    def evaluate_before(self, model: Any) -> None:
        """Evaluate as usual, once the model's logits are known to be what the policy computes."""
        check_output(model)
        super().evaluate_before(model)

    @within_memory("lower schedule.batch_size, rollout.batch_size or rollout.max_new_tokens")
    def take_steps(self, model: Any) -> int:
        """Run all updates, from the latest checkpoint where there is one; returns how many the run has."""
        config, prompts = self.config, self.data.train
        policy = Policy(model, config)
        learner = PpoLearner(policy, config, len(prompts))
        checkpoint = self.loop.checkpoint_to_resume()
        self.errors.resume(step_of(checkpoint) if checkpoint else 0)
        self.loop.announce_resume(checkpoint)
        if checkpoint:
            learner.load(checkpoint)
        with watched_steps(self, model, learner, checkpoint) as steps:
            for step in steps.remaining():
                examples = _prompts_of(prompts, config, step)
                answers = _answer(self, policy, examples, step)
                try:
                    results = self.score(examples, answers, step)
                except RunError:  # a reward that fails, where that is to end the run
                    steps.save(learner.save)
                    raise
                minibatches = learner.experience(examples, answers, results, step)
                metrics = learner.update(minibatches, step, steps.watcher.before_clipping)
                metrics |= experience_metrics(list(chain(*minibatches)), results, answers, config)
                if policy.replay:
                    metrics["policy/routing_differs"] = policy.replay.take_share(group.all_reduce)
                metrics |= {"kl/beta": learner.beta, "num_tokens": learner.num_tokens}
                if config.ppo.kl_target:
                    kl = metrics["policy/kl_per_answer"]
                    learner.beta = losses.next_beta(learner.beta, kl, config.ppo.kl_target, config.ppo.answers)
                steps.end_step(metrics, epoch=step * config.ppo.answers / len(prompts), save=learner.save)
        policy.close()
        return int(steps.state.global_step)


def _prompts_of(prompts: Sequence[PromptExample], config: PpoRun, step: int) -> list[PromptExample]:
    """This process's share of the prompts of an update: passes over all prompts, each in another order."""
    wanted = range((step - 1) * config.ppo.answers, step * config.ppo.answers)

    @cache
    def order(turn: int) -> list[int]:
        return random.Random(f"{config.schedule.seed} {turn}").sample(range(len(prompts)), len(prompts))

    chosen = [prompts[order(number // len(prompts))[number % len(prompts)]] for number in wanted]
    return chosen[group.rank() :: group.world_size()]


def _answer(session: PpoSession, policy: Policy, examples: Sequence[PromptExample], step: int) -> Answers:
    """Generate an answer to each prompt; the same ones if the run is interrupted and resumed."""
    seed = random.Random(f"{session.config.schedule.seed} {step} {group.rank()}").getrandbits(63)
    device = policy.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        prompts, tokenizer = [example.input_ids for example in examples], session.base.tokenizer
        answers = generate(policy.model, prompts, tokenizer, session.config.rollout, replay=policy.replay)
    policy.be_deterministic()
    return answers


# --- steps ------------------------------------------------------------------------------------------------------------


@dataclass
class Steps:
    """The steps of a training loop without a Trainer, reported to callbacks as transformers' Trainer does."""

    handler: CallbackHandler
    args: Any
    state: TrainerState
    control: TrainerControl
    watcher: Watcher
    folder: RunFolder

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
        is_due = self.state.global_step % self.state.save_steps == 0 or self.state.global_step == self.state.max_steps
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
def watched_steps(session: PpoSession, model: Any, learner: PpoLearner, checkpoint: Path | None) -> Iterator[Steps]:
    """The steps of a run inside its `Loop`; raises KeyboardInterrupt or StoppedByAlarm where one of them ended it."""
    config, folder = session.config, session.folder
    with session.loop.watching(model, checkpoint) as watching:
        trained = model, session.base.tokenizer, learner.optimizer, learner.scheduler
        handler = CallbackHandler(watching.callbacks, *trained)
        state = TrainerState(
            global_step=step_of(checkpoint) if checkpoint else 0,
            max_steps=learner.num_updates,
            logging_steps=1,
            save_steps=config.schedule.save_steps,
            is_world_process_zero=session.is_main,
            is_local_process_zero=session.is_main,
        )
        args, control = to_arguments(config, folder, compute_dtype(model)), TrainerControl()
        steps = Steps(handler, args, state, control, watching.watcher, folder)
        steps.control = handler.on_train_begin(args, state, steps.control)
        yield steps
        handler.on_train_end(args, state, steps.control)
