"""`ppo`: proximal policy optimisation from rewards of the model's own answers (arXiv 1707.06347).

An update reads from top to bottom of `_run_updates`: generate answers, score them, compute rewards and advantages, and
take a few passes over the answers. The reference policy of the KL penalty is the model as it began, and the values come
from a head on the same trunk: the base is in memory once. Of several processes each answers its share, and gradients
are summed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.experience import experience_metrics, rewards_and_advantages
from dsr1_tune.align.online.generate import Answers, generate
from dsr1_tune.align.online.learner import PpoLearner
from dsr1_tune.align.online.policy import Policy, check_output
from dsr1_tune.align.online.session import PromptExample, RolloutSession
from dsr1_tune.align.online.steps import watched_steps
from dsr1_tune.align.train_policy import train_policy
from dsr1_tune.config import PpoRun
from dsr1_tune.errors import RunError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.moe.replay import check_replay
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.loop import within_memory
from dsr1_tune.runs.open_session import open_session


def run(config: PpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train with PPO as `config` says, or resume the run in `resume`; returns the folder with the adapter.

    Raises TuneError for everything the user can fix, before weights are loaded where that is possible, and
    KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
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

    def take_steps(self, model: Any) -> int:
        """Run PPO's updates; returns how many the run has."""
        with within_memory("lower schedule.batch_size, rollout.batch_size or rollout.max_new_tokens"):
            return _run_updates(self, model)


def _run_updates(session: PpoSession, model: Any) -> int:
    """Run all updates, from the latest checkpoint where there is one; returns how many the run has."""
    config, prompts = session.config, session.data.train
    policy = Policy(model, config)
    learner = PpoLearner.create(policy, config, len(prompts))
    checkpoint = session.loop.checkpoint_to_resume()
    session.errors.resume(step_of(checkpoint) if checkpoint else 0)
    session.loop.announce_resume(checkpoint)
    if checkpoint:
        learner.load(checkpoint)
    with watched_steps(session, model, learner.optimizer, learner.scheduler, learner.num_updates, checkpoint) as steps:
        for step in steps.remaining():
            examples = _prompts_of(prompts, config, step)
            answers = _answer(session, policy, examples, step)
            try:
                results = session.score(examples, answers, step)
            except RunError:  # a reward that fails, where that is to end the run
                steps.save(learner.save)
                raise
            minibatches = rewards_and_advantages(policy, config, examples, answers, results, learner.beta, step)
            metrics = learner.update(minibatches, step, steps)
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
    order: dict[int, list[int]] = {}
    for number in wanted:
        turn = number // len(prompts)
        if turn not in order:
            order[turn] = random.Random(f"{config.schedule.seed} {turn}").sample(range(len(prompts)), len(prompts))
    chosen = [prompts[order[number // len(prompts)][number % len(prompts)]] for number in wanted]
    return chosen[group.rank() :: group.world_size()]


def _answer(session: PpoSession, policy: Policy, examples: Sequence[PromptExample], step: int) -> Answers:
    """Generate an answer to each prompt; the same ones if the run is interrupted and resumed."""
    seed = random.Random(f"{session.config.schedule.seed} {step} {group.rank()}").getrandbits(63)
    device = policy.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        answers = generate(
            policy.model,
            [example.input_ids for example in examples],
            session.base.tokenizer,
            session.config.rollout,
            replay=policy.replay,
        )
    policy.be_deterministic()
    return answers
