"""`ppo`: the model answers prompts, rewards judge the answers, and it learns what is worth more (arXiv 1707.06347).

One update reads from top to bottom of `_update`: answer, judge, weigh, and then a few passes over the answers. The
reference of the KL penalty is the model as it began, the values come from a head on the same trunk: the base is in
memory once. Of several processes each answers its share, and gradients are summed.

Letters: N answers of an update in this process, B answers of a portion, T tokens of the longest of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.checkpoint import load_state, save_state
from dsr1_tune.align.online.experience import Batch, weigh
from dsr1_tune.align.online.generate import Answers, draw
from dsr1_tune.align.online.loop import Steps, watched
from dsr1_tune.align.online.policy import Policy, check_output
from dsr1_tune.align.online.session import PromptExample, RolloutSession, mean, means
from dsr1_tune.align.preference.session import learn
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import PpoRun
from dsr1_tune.errors import RunError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.lora import check_gradients
from dsr1_tune.moe.replay import check_replay
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder, step_of
from dsr1_tune.runs.session import open_session, within_memory
from dsr1_tune.runs.trainer import optimizers
from dsr1_tune.runs.watch.rollback import set_suspects_aside


def run(config: PpoRun, resume: Path | None = None, console: Console | None = None) -> RunFolder:
    """Train with PPO as `config` says, or go on with the run in `resume`; returns the folder with the adapter.

    Raises TuneError for everything the user can mend, before weights are loaded where that is possible, and
    KeyboardInterrupt after a Ctrl-C, when a checkpoint has been saved.
    """
    with open_session(config, "ppo", resume, console, kind=PpoSession) as session:
        session.check_rewards()
        if session.config.ppo.routing_replay:
            check_replay(meta_model(session.base.config))
        learn(session)
    return session.folder


class PpoSession(RolloutSession[PpoRun]):
    """A run that learns by PPO; all else, from the base to the checked adapter, is as in other ways of alignment."""

    def evaluate_before(self, model: Any) -> None:
        """As always, once it is clear that the policy will know its own probabilities."""
        check_output(model)
        super().evaluate_before(model)

    def fit(self, model: Any) -> None:
        """All updates."""
        self.narrator.stage("Training")
        hint = "lower schedule.batch_size, rollout.batch_size or rollout.max_new_tokens"
        with self.timed("train"), within_memory(hint):
            _update(self, model)


def _update(session: PpoSession, model: Any) -> None:
    """All updates, from the latest checkpoint where there is one."""
    config, prompts = session.config, session.data.train
    policy = Policy(model, config)
    learner = _Learner.begin(policy, config, len(prompts))
    set_suspects_aside(session.folder)
    checkpoint = group.from_main(session.folder.latest_checkpoint)
    session.errors.resume(step_of(checkpoint) if checkpoint else 0)
    if checkpoint:
        session.narrator.say(f"going on from {checkpoint}")
        learner.load(checkpoint)
    with watched(session, model, learner.optimizer, learner.scheduler, learner.num_updates, checkpoint) as steps:
        for step in steps.remaining():
            asked = _prompts_of(prompts, config, step)
            answers = _answer(session, policy, asked, step)
            try:
                verdicts = session.judge(asked, answers, step)
            except RunError:  # a reward that fails, where that is to end the run
                steps.save(learner.save)
                raise
            minibatches = weigh(policy, config, asked, answers, verdicts, learner.beta, step)
            numbers = learner.update(minibatches, step, steps)
            numbers |= _told(list(chain(*minibatches)), verdicts, answers, config)
            if policy.replay:
                numbers["policy/routing_differs"] = policy.replay.take_share(group.all_reduce)
            numbers |= {"kl/beta": learner.beta, "num_tokens": learner.num_tokens}
            if config.ppo.kl_target:
                kl = numbers["policy/kl_per_answer"]
                learner.beta = losses.next_beta(learner.beta, kl, config.ppo.kl_target, config.ppo.answers)
            steps.done(numbers, epoch=step * config.ppo.answers / len(prompts), save=learner.save)
    session.facts["num_steps"] = steps.state.global_step
    policy.close()


# --- the answers of an update ----------------------------------------------------------------------------------------


def _prompts_of(prompts: Sequence[PromptExample], config: PpoRun, step: int) -> list[PromptExample]:
    """This process's share of the prompts of an update: all prompts in turn, in another order every time around."""
    wanted = range((step - 1) * config.ppo.answers, step * config.ppo.answers)
    order: dict[int, list[int]] = {}
    for number in wanted:
        turn = number // len(prompts)
        if turn not in order:
            order[turn] = random.Random(f"{config.schedule.seed} {turn}").sample(range(len(prompts)), len(prompts))
    chosen = [prompts[order[number // len(prompts)][number % len(prompts)]] for number in wanted]
    return chosen[group.rank() :: group.world_size()]


def _answer(session: PpoSession, policy: Policy, asked: Sequence[PromptExample], step: int) -> Answers:
    """An answer to each prompt; the same ones, if the run is broken off and goes on."""
    seed = random.Random(f"{session.config.schedule.seed} {step} {group.rank()}").getrandbits(63)
    device = policy.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        answers = draw(
            policy.model,
            [example.input_ids for example in asked],
            session.base.tokenizer,
            session.config.rollout,
            replay=policy.replay,
        )
    policy.be_deterministic()
    return answers


# --- learning from them ----------------------------------------------------------------------------------------------


TOLD = (
    "loss", "policy/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl", "policy/ratio", "value/loss",
    "value/clip_fraction",
)  # fmt: skip
"""What a portion tells of the step that it is a part of."""


@dataclass
class _Learner:
    """What moves the weights, and the weight of the KL penalty, which may move too."""

    policy: Policy
    config: PpoRun
    optimizer: torch.optim.Optimizer
    scheduler: Any
    beta: float
    num_updates: int
    num_tokens: float = 0.0
    """Tokens that went forward and back, in all updates of this process's life and of all processes."""
    has_checked_gradients: bool = False

    @classmethod
    def begin(cls, policy: Policy, config: PpoRun, num_prompts: int) -> _Learner:
        schedule = config.schedule
        num_updates = schedule.max_steps or math.ceil(schedule.epochs * num_prompts / config.ppo.answers)
        optimizer = optimizers.for_run(policy.model, config, quantized=config.method == "qlora")
        # The head begins at zero: with an adapter's small steps it would never tell anything.
        optimizer.add_param_group({"params": list(policy.head.parameters()), "lr": config.ppo.value_learning_rate})
        num_warmup = round(schedule.warmup_share * num_updates)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, num_warmup, num_updates))
        return cls(policy, config, optimizer, scheduler, config.ppo.kl, num_updates)

    def save(self, folder: Path) -> None:
        """A checkpoint."""
        save_state(folder, self.policy.trained, self.optimizer, self.scheduler, self.beta)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        self.beta = load_state(folder, self.policy.trained, self.optimizer, self.scheduler)

    def update(self, minibatches: Sequence[Sequence[Batch]], step: int, steps: Steps) -> dict[str, float]:
        """A few passes over the answers, in minibatches; ends early where the policy has moved too far."""
        ppo = self.config.ppo
        sums: list[dict[str, Tensor]] = []
        for epoch in range(ppo.epochs):
            order = random.Random(f"{self.config.schedule.seed} {step} {epoch}")
            for minibatch in order.sample(minibatches, len(minibatches)):
                told = self._minibatch(minibatch, steps)
                sums.append(told)
                if ppo.stop_kl and float(told["policy/approx_kl"]) > ppo.stop_kl:
                    break
            else:
                continue
            break
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        numbers = {name: float(torch.stack([told[name] for told in sums]).mean()) for name in sums[0]}
        return {
            "loss": numbers.pop("loss"),
            "grad_norm": numbers.pop("grad_norm"),
            "learning_rate": rate,
            **numbers,
            "policy/optimizer_steps": len(sums),
        }

    def _minibatch(self, minibatch: Sequence[Batch], steps: Steps) -> dict[str, Tensor]:
        """One step of the optimizer; every token of the minibatch weighs the same, whichever process has it."""
        device = self.policy.head.weight.device
        num_tokens = group.all_reduce(torch.tensor(float(sum(b.num_tokens for b in minibatch)), device=device))
        self.num_tokens += float(num_tokens)
        told = dict.fromkeys(TOLD, torch.zeros((), device=device))
        for batch in minibatch:
            for name, value in self._backward(batch, batch.num_tokens / num_tokens.clamp(min=1)).items():
                told[name] = told[name] + value
        weights = list(self.policy.trained.values())
        _sum_gradients(weights)
        steps.watcher.before_clipping()
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.schedule.max_grad_norm)
        if not self.has_checked_gradients and float(norm) > 0:
            self.has_checked_gradients = check_gradients(self.policy.model)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        numbers = group.all_reduce(torch.stack(list(told.values()))).unbind()
        return {**dict(zip(told, numbers, strict=True)), "grad_norm": norm.detach()}

    def _backward(self, batch: Batch, share: Tensor) -> dict[str, Tensor]:
        """Gradients of a portion, which is `share` of the minibatch; its part of what is told."""
        ppo, mask_BT = self.config.ppo, batch.mask_BT
        now = self.policy.evaluate(batch.portion, learns_entropy=ppo.entropy > 0)
        policy = losses.policy_loss(now.logp_BT, batch.old_BT, batch.advantages_BT, mask_BT, ppo.clip)
        entropy = losses.masked_mean(now.entropy_BT, mask_BT)
        loss = policy.loss - ppo.entropy * entropy
        if now.values_BT is None:
            (share * loss).backward()
            with self.policy.value_trunk():
                value = self._value_loss(self.policy.values(batch.portion), batch)
                (share * ppo.value_weight * value.loss).backward()
            loss = loss.detach() + ppo.value_weight * value.loss
        else:
            value = self._value_loss(now.values_BT, batch)
            loss = loss + ppo.value_weight * value.loss
            (share * loss).backward()
        told = (
            loss, policy.loss, entropy, policy.clip_fraction, policy.approx_kl, policy.ratio, value.loss,
            value.clip_fraction,
        )  # fmt: skip
        return {name: share * one.detach() for name, one in zip(TOLD, told, strict=True)}

    def _value_loss(self, values_BT: Tensor, batch: Batch) -> losses.ValueLoss:
        return losses.value_loss(
            values_BT, batch.values_BT, batch.returns_BT, batch.mask_BT, self.config.ppo.value_clip
        )


def _rate(num_done: int, num_warmup: int, num_updates: int) -> float:
    """Of the peak learning rate: up over the warm-up, but never nothing, as an update is dear; down along a cosine."""
    if num_done < num_warmup:
        return (num_done + 1) / (num_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (num_done - num_warmup) / max(num_updates - num_warmup, 1)))


def _sum_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    """Over all processes, in one message: an adapter is small."""
    if group.world_size() == 1:
        return
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    together = group.all_reduce(torch.cat([gradient.reshape(-1).float() for gradient in gradients]))
    for weight, part in zip(weights, together.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight).to(weight.dtype)


# --- what is told of it ----------------------------------------------------------------------------------------------


def _told(
    batches: Sequence[Batch], verdicts: Sequence[RewardResult], answers: Answers, config: PpoRun
) -> dict[str, float]:
    """What the log tells of an update's answers, over all processes; means over answers, or over their tokens."""
    kl = sum(float(((batch.old_BT - batch.reference_BT) * batch.mask_BT).sum()) for batch in batches)
    num_tokens = sum(batch.num_tokens for batch in batches)
    of_answers = {
        "reward/mean": mean([verdict.total for verdict in verdicts]),
        **{f"reward/{name}": value for name, value in means([verdict.layers for verdict in verdicts]).items()},
        **{f"reward/{name}": value for name, value in means([verdict.components for verdict in verdicts]).items()},
        "reward/with_penalty": mean([float(score) for batch in batches for score in batch.score_B]),
        "reward/errors": mean([float(len(verdict.errors)) for verdict in verdicts]),
        "answer/tokens": mean([len(ids) for ids in answers.ids]),
        "answer/ended": mean([float(ended) for ended in answers.have_ended]),
        "policy/kl_per_answer": kl / max(len(answers.ids), 1),
    }
    share = torch.tensor([len(answers.ids) / config.ppo.answers], dtype=torch.float64)
    together = group.all_reduce(torch.tensor(list(of_answers.values()), dtype=torch.float64) * share)
    told = dict(zip(of_answers, together.tolist(), strict=True))
    tokens = group.all_reduce(torch.tensor([float(num_tokens), kl], dtype=torch.float64))
    told["policy/kl"] = float(tokens[1] / tokens[0].clamp(min=1))
    explained = _explained_variance(batches)
    if math.isfinite(explained):  # there is none where all returns are the same
        told["value/explained_variance"] = explained
    return told


def _explained_variance(batches: Sequence[Batch]) -> float:
    """Of the values before the answers were learned from."""

    def flat(name: str) -> Tensor:
        return torch.cat([getattr(batch, name).reshape(-1) for batch in batches]).unsqueeze(0)

    return losses.explained_variance(flat("values_BT"), flat("returns_BT"), flat("mask_BT"), group.all_reduce)
