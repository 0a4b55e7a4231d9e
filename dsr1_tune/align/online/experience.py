"""What the answers of an update are worth, token by token: PPO's experience, in the portions that are learned from.

Letters: B answers of a portion, T tokens of the longest of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.generate import Answers
from dsr1_tune.align.online.policy import Policy, Portion
from dsr1_tune.align.online.session import PromptExample
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import PpoRun
from dsr1_tune.moe.monitor import uncounted
from dsr1_tune.runs.distributed import group


@dataclass(frozen=True)
class Batch:
    """A portion of the update's answers with all that does not change while it is learned from."""

    portion: Portion
    old_BT: Tensor
    """Log-probabilities under the policy that answered."""
    reference_BT: Tensor
    values_BT: Tensor
    score_B: Tensor
    """The verdict, less the penalty of an answer that did not end."""
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """1 on the answers' own tokens."""
        return self.portion.mask_BT

    @property
    def num_tokens(self) -> int:
        """Tokens that are learned from."""
        return int(self.mask_BT.sum())


@torch.no_grad()
def weigh(
    policy: Policy,
    config: PpoRun,
    asked: Sequence[PromptExample],
    answers: Answers,
    verdicts: Sequence[RewardResult],
    beta: float,
    step: int,
) -> list[list[Batch]]:
    """Old and reference log-probabilities, values, rewards per token, advantages, in the update's minibatches.

    An answer stays in its portion for all passes, so that its old and new log-probabilities are computed alike: before
    the first step of an update their ratio is exactly 1.
    """
    ppo = config.ppo
    minibatches = _minibatches(asked, answers, config, step)
    with uncounted():  # the passes that learn are counted
        batches = [_batch(policy, config, asked, answers, verdicts, beta, rows) for rows in chain(*minibatches)]
    if ppo.whiten_rewards:
        rewards = _whitened([batch.rewards_BT for batch in batches], batches, shift_mean=False)
        batches = [replace(batch, rewards_BT=one) for batch, one in zip(batches, rewards, strict=True)]
    batches = [_with_advantages(batch, ppo.gamma, ppo.lam) for batch in batches]
    white = _whitened([batch.advantages_BT for batch in batches], batches)
    weighed = iter([replace(batch, advantages_BT=one) for batch, one in zip(batches, white, strict=True)])
    return [list(islice(weighed, len(portions))) for portions in minibatches]


def _minibatches(asked: Sequence[PromptExample], answers: Answers, config: PpoRun, step: int) -> list[list[list[int]]]:
    """The answers of every minibatch, drawn at random, in portions of like length."""
    order = random.Random(f"{config.schedule.seed} {step} minibatches").sample(range(len(asked)), len(asked))
    size = config.schedule.batch_size
    minibatches = []
    for number in range(config.ppo.minibatches):
        rows = order[number :: config.ppo.minibatches]
        rows.sort(key=lambda row: len(asked[row].input_ids) + len(answers.ids[row]))
        minibatches.append([rows[first : first + size] for first in range(0, len(rows), size)])
    return minibatches


def _batch(
    policy: Policy,
    config: PpoRun,
    asked: Sequence[PromptExample],
    answers: Answers,
    verdicts: Sequence[RewardResult],
    beta: float,
    rows: Sequence[int],
) -> Batch:
    """A portion as it is before anything is learned from it; its advantages are still to come."""
    portion = Portion.of(
        [asked[row].input_ids for row in rows], [answers.ids[row] for row in rows], policy.model.device
    )
    if answers.routing:
        portion = portion.with_routing([answers.routing[row] for row in rows])
    with policy.counting_replay():
        now = policy.evaluate(portion)
    values_BT = now.values_BT
    if values_BT is None:
        with policy.value_trunk():
            values_BT = policy.values(portion)
    reference_BT, mask_BT = policy.reference(portion), portion.mask_BT
    penalty = config.ppo.missing_eos
    score_B = torch.tensor(
        [verdicts[row].total - penalty * (not answers.have_ended[row]) for row in rows], device=values_BT.device
    )
    rewards_BT = losses.rewards_per_token(score_B, now.logp_BT, reference_BT, mask_BT, beta)
    nothing_BT = torch.zeros_like(rewards_BT)
    return Batch(
        portion, now.logp_BT, reference_BT, values_BT * mask_BT, score_B, rewards_BT, nothing_BT, nothing_BT
    )  # fmt: skip


def _with_advantages(batch: Batch, gamma: float, lam: float) -> Batch:
    advantages_BT, returns_BT = losses.advantages(batch.rewards_BT, batch.values_BT, batch.mask_BT, gamma, lam)
    return replace(batch, advantages_BT=advantages_BT, returns_BT=returns_BT)


def _whitened(tensors: Sequence[Tensor], batches: Sequence[Batch], shift_mean: bool = True) -> list[Tensor]:
    """Over all answers of the update, those of the other processes too."""
    moments = losses.Moments.of(tensors, [batch.mask_BT for batch in batches], group.all_reduce)
    return [losses.whiten(one, batch.mask_BT, shift_mean, moments) for one, batch in zip(tensors, batches, strict=True)]
