"""PPO's experience: log-probabilities, values, rewards and advantages of an update's answers, token by token.

Letters: B answers of a micro-batch, T tokens of the longest of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.generate import Answers
from dsr1_tune.align.online.policy import MicroBatch, Policy
from dsr1_tune.align.online.session import PromptExample, mean, means
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import PpoRun
from dsr1_tune.moe.monitor import uncounted
from dsr1_tune.runs.distributed import group


@dataclass(frozen=True)
class Experience:
    """A micro-batch of an update's answers with all that stays fixed while the policy is trained on it."""

    micro_batch: MicroBatch
    old_BT: Tensor
    """Log-probabilities under the policy that answered."""
    reference_BT: Tensor
    values_BT: Tensor
    score_B: Tensor
    """The reward, less the penalty of an answer that did not end."""
    rewards_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    @property
    def mask_BT(self) -> Tensor:
        """1 on the answers' own tokens."""
        return self.micro_batch.mask_BT

    @property
    def num_tokens(self) -> int:
        """Tokens that are trained on."""
        return int(self.mask_BT.sum())


@torch.no_grad()
def rewards_and_advantages(
    policy: Policy,
    config: PpoRun,
    prompts: Sequence[PromptExample],
    answers: Answers,
    results: Sequence[RewardResult],
    beta: float,
    step: int,
) -> list[list[Experience]]:
    """The experience of an update in its minibatches: old and reference log-probabilities, rewards, advantages.

    An answer stays in its micro-batch for all passes, so that its old and new log-probabilities are computed alike:
    before the first step of an update their ratio is exactly 1.
    """
    ppo = config.ppo
    minibatches = _minibatches(prompts, answers, config, step)
    with uncounted():  # the passes that learn are counted
        found = [_experience(policy, config, prompts, answers, results, beta, rows) for rows in chain(*minibatches)]
    if ppo.whiten_rewards:
        rewards = _whitened([one.rewards_BT for one in found], found, shift_mean=False)
        found = [replace(one, rewards_BT=white_BT) for one, white_BT in zip(found, rewards, strict=True)]
    found = [_with_advantages(one, ppo.gamma, ppo.lam) for one in found]
    white = _whitened([one.advantages_BT for one in found], found)
    whitened = iter([replace(one, advantages_BT=white_BT) for one, white_BT in zip(found, white, strict=True)])
    return [list(islice(whitened, len(micro_batches))) for micro_batches in minibatches]


def _minibatches(
    prompts: Sequence[PromptExample], answers: Answers, config: PpoRun, step: int
) -> list[list[list[int]]]:
    """The numbers of the answers in every minibatch, chosen at random, in micro-batches of like length."""
    order = random.Random(f"{config.schedule.seed} {step} minibatches").sample(range(len(prompts)), len(prompts))
    size = config.schedule.batch_size
    minibatches = []
    for number in range(config.ppo.minibatches):
        rows = order[number :: config.ppo.minibatches]
        rows.sort(key=lambda row: len(prompts[row].input_ids) + len(answers.ids[row]))
        minibatches.append([rows[first : first + size] for first in range(0, len(rows), size)])
    return minibatches


def _experience(
    policy: Policy,
    config: PpoRun,
    prompts: Sequence[PromptExample],
    answers: Answers,
    results: Sequence[RewardResult],
    beta: float,
    rows: Sequence[int],
) -> Experience:
    """A micro-batch before the update's first optimizer step; its advantages are computed later."""
    micro_batch = MicroBatch.of(
        [prompts[row].input_ids for row in rows], [answers.ids[row] for row in rows], policy.model.device
    )
    if answers.routing:
        micro_batch = micro_batch.with_routing([answers.routing[row] for row in rows])
    with policy.counting_replay():
        now = policy.forward(micro_batch)
    values_BT = now.values_BT
    if values_BT is None:
        with policy.value_trunk():
            values_BT = policy.values(micro_batch)
    reference_BT, mask_BT = policy.reference(micro_batch), micro_batch.mask_BT
    penalty = config.ppo.missing_eos
    score_B = torch.tensor(
        [results[row].total - penalty * (not answers.have_ended[row]) for row in rows], device=values_BT.device
    )
    rewards_BT = losses.rewards_per_token(score_B, now.logp_BT, reference_BT, mask_BT, beta)
    nothing_BT = torch.zeros_like(rewards_BT)
    return Experience(
        micro_batch, now.logp_BT, reference_BT, values_BT * mask_BT, score_B, rewards_BT, nothing_BT, nothing_BT
    )  # fmt: skip


def _with_advantages(one: Experience, gamma: float, lam: float) -> Experience:
    advantages_BT, returns_BT = losses.advantages(one.rewards_BT, one.values_BT, one.mask_BT, gamma, lam)
    return replace(one, advantages_BT=advantages_BT, returns_BT=returns_BT)


def _whitened(tensors: Sequence[Tensor], experience: Sequence[Experience], shift_mean: bool = True) -> list[Tensor]:
    """Whiten over all answers of the update, also those of other processes."""
    masks = [one.mask_BT for one in experience]
    moments = losses.Moments.of(tensors, masks, group.all_reduce)
    return [losses.whiten(tensor, mask, shift_mean, moments) for tensor, mask in zip(tensors, masks, strict=True)]


# --- metrics ----------------------------------------------------------------------------------------------------------


def experience_metrics(
    experience: Sequence[Experience], results: Sequence[RewardResult], answers: Answers, config: PpoRun
) -> dict[str, float]:
    """The metrics that are logged of an update's answers, over all processes: means over answers, or over tokens."""
    kl = sum(float(((one.old_BT - one.reference_BT) * one.mask_BT).sum()) for one in experience)
    num_tokens = sum(one.num_tokens for one in experience)
    of_answers = {
        "reward/mean": mean([result.total for result in results]),
        **{f"reward/{name}": value for name, value in means([result.layers for result in results]).items()},
        **{f"reward/{name}": value for name, value in means([result.components for result in results]).items()},
        "reward/with_penalty": mean([float(score) for one in experience for score in one.score_B]),
        "reward/errors": mean([float(len(result.errors)) for result in results]),
        "answer/tokens": mean([len(ids) for ids in answers.ids]),
        "answer/ended": mean([float(ended) for ended in answers.have_ended]),
        "policy/kl_per_answer": kl / max(len(answers.ids), 1),
    }
    share = torch.tensor([len(answers.ids) / config.ppo.answers], dtype=torch.float64)
    together = group.all_reduce(torch.tensor(list(of_answers.values()), dtype=torch.float64) * share)
    metrics = dict(zip(of_answers, together.tolist(), strict=True))
    tokens = group.all_reduce(torch.tensor([float(num_tokens), kl], dtype=torch.float64))
    metrics["policy/kl"] = float(tokens[1] / tokens[0].clamp(min=1))
    explained = _explained_variance(experience)
    if math.isfinite(explained):  # there is none where all returns are the same
        metrics["value/explained_variance"] = explained
    return metrics


def _explained_variance(experience: Sequence[Experience]) -> float:
    """Of the returns, by the values before the answers were learned from."""

    def flat(name: str) -> Tensor:
        return torch.cat([getattr(one, name).reshape(-1) for one in experience]).unsqueeze(0)

    return losses.explained_variance(flat("values_BT"), flat("returns_BT"), flat("mask_BT"), group.all_reduce)
