"""How PPO learns from an update's answers: rewards and advantages, passes over minibatches, losses, optimizer steps.

Letters: B answers of a micro-batch, T tokens of the longest of them.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.generate import Answers
from dsr1_tune.align.online.policy import MicroBatch, Policy
from dsr1_tune.align.online.session import PromptExample, reward_values
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import PpoRun
from dsr1_tune.errors import RunError
from dsr1_tune.models.trained.lora import check_gradients
from dsr1_tune.moe.monitor import uncounted
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.trainer import optimizers

WEIGHTS, OPTIMIZER, STATE = "trained.safetensors", "optimizer.pt", "ppo_state.json"


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


class PpoLearner:
    """PPO's optimizer and learning rate schedule, and the coefficient of the KL penalty, which may adapt."""

    def __init__(self, policy: Policy, config: PpoRun, num_prompts: int) -> None:
        self.policy, self.config, self.beta = policy, config, config.ppo.kl
        schedule = config.schedule
        self.num_updates = schedule.max_steps or math.ceil(schedule.epochs * num_prompts / config.ppo.answers)
        self.optimizer = optimizers.for_run(policy.model, config, quantized=config.method == "qlora")
        # The head begins at zero: with an adapter's small learning rate it would hardly move.
        head = {"params": list(policy.head.parameters()), "lr": config.ppo.value_learning_rate}
        self.optimizer.add_param_group(head)
        num_warmup = round(schedule.warmup_share * self.num_updates)
        self.scheduler = optimizers.cosine_after_warmup(self.optimizer, num_warmup, self.num_updates)
        self.num_tokens = 0.0
        """Tokens trained on since this process started, over all processes."""
        self.has_checked_gradients = False

    def save(self, folder: Path) -> None:
        """Write all that the next update depends on; the seeds of its answers follow from the update's number."""
        trained = {name: weight.detach().contiguous() for name, weight in self.policy.trained.items()}
        save_file(trained, folder / WEIGHTS)
        states = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        torch.save(states, folder / OPTIMIZER)
        with atomic_write(folder / STATE) as file:
            json.dump({"beta": self.beta}, file)

    def load(self, folder: Path) -> None:
        """Load a checkpoint to resume from. Raises RunError where it is damaged or does not fit."""
        try:
            weights = load_file(folder / WEIGHTS)
            states = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
            self.beta = float(json.loads((folder / STATE).read_text())["beta"])
        except Exception as error:  # unpicklers fail in many ways
            hint = "remove it: an earlier one is gone on from"
            raise RunError(f"{folder}: cannot be read: {error}", hint=hint) from None
        trained = self.policy.trained
        if weights.keys() != trained.keys():
            raise RunError(f"{folder}: holds other weights than this run trains", hint="start a new run")
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(weights[name])
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict(states["scheduler"])

    @torch.no_grad()
    def experience(
        self, prompts: Sequence[PromptExample], answers: Answers, results: Sequence[RewardResult], step: int
    ) -> list[list[Experience]]:
        """The experience of an update in its minibatches: old and reference log-probabilities, rewards, advantages.

        An answer stays in its micro-batch for all passes, so that its old and new log-probabilities are computed alike:
        before the first step of an update their ratio is exactly 1. No token of an answer that has no score counts.
        """
        ppo = self.config.ppo
        minibatches = self._minibatches(prompts, answers, step)
        with uncounted():  # the passes that learn are counted
            found = [self._experience(prompts, answers, results, rows) for rows in chain(*minibatches)]
        masks = [one.mask_BT for one in found]
        if ppo.whiten_rewards:
            rewards = losses.whitened([one.rewards_BT for one in found], masks, shift_mean=False)
            found = [replace(one, rewards_BT=white_BT) for one, white_BT in zip(found, rewards, strict=True)]
        gains = [losses.advantages(one.rewards_BT, one.values_BT, one.mask_BT, ppo.gamma, ppo.lam) for one in found]
        white = losses.whitened([advantages_BT for advantages_BT, _ in gains], masks)
        learned = iter(
            replace(one, advantages_BT=white_BT, returns_BT=returns_BT)
            for one, white_BT, (_, returns_BT) in zip(found, white, gains, strict=True)
        )
        return [list(islice(learned, len(micro_batches))) for micro_batches in minibatches]

    def _minibatches(self, prompts: Sequence[PromptExample], answers: Answers, step: int) -> list[list[list[int]]]:
        """The numbers of the answers in every minibatch, chosen at random, in micro-batches of like length."""
        schedule, num_minibatches = self.config.schedule, self.config.ppo.minibatches
        order = random.Random(f"{schedule.seed} {step} minibatches").sample(range(len(prompts)), len(prompts))
        minibatches = []
        for number in range(num_minibatches):
            rows = order[number::num_minibatches]
            rows.sort(key=lambda row: len(prompts[row].input_ids) + len(answers.ids[row]))
            firsts = range(0, len(rows), schedule.batch_size)
            minibatches.append([rows[first : first + schedule.batch_size] for first in firsts])
        return minibatches

    def _experience(
        self, prompts: Sequence[PromptExample], answers: Answers, results: Sequence[RewardResult], rows: Sequence[int]
    ) -> Experience:
        """A micro-batch before the update's first optimizer step; its advantages are computed later."""
        policy, ppo = self.policy, self.config.ppo
        asked, said = [prompts[row].input_ids for row in rows], [answers.ids[row] for row in rows]
        micro_batch = MicroBatch.of(asked, said, policy.model.device)
        micro_batch = micro_batch.without([not results[row].is_scored for row in rows])
        if answers.routing:
            micro_batch = micro_batch.with_routing([answers.routing[row] for row in rows])
        now = policy.forward(micro_batch, counts_replay=True)
        values_BT = now.values_BT
        if values_BT is None:
            with policy.value_trunk():
                values_BT = policy.values(micro_batch)
        reference_BT, mask_BT = policy.reference(micro_batch), micro_batch.mask_BT
        scores = [results[row].total - ppo.missing_eos * (not answers.have_ended[row]) for row in rows]
        score_B = torch.tensor(scores, device=values_BT.device)
        rewards_BT = losses.rewards_per_token(score_B, now.logp_BT, reference_BT, mask_BT, self.beta)
        nothing_BT = torch.zeros_like(rewards_BT)
        return Experience(
            micro_batch, now.logp_BT, reference_BT, values_BT * mask_BT, score_B, rewards_BT, nothing_BT, nothing_BT
        )  # fmt: skip

    def update(
        self, minibatches: Sequence[Sequence[Experience]], step: int, before_clipping: Callable[[], None]
    ) -> dict[str, float]:
        """Take ppo.epochs passes over the answers, fewer where ppo.stop_kl is exceeded; returns metrics."""
        ppo = self.config.ppo
        sums: list[dict[str, Tensor]] = []
        orders = [random.Random(f"{self.config.schedule.seed} {step} {epoch}") for epoch in range(ppo.epochs)]
        for minibatch in chain(*(order.sample(minibatches, len(minibatches)) for order in orders)):
            if (metrics := self._step(minibatch, before_clipping)) is None:
                continue
            sums.append(metrics)
            if ppo.stop_kl and float(metrics["policy/approx_kl"]) > ppo.stop_kl:
                break
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        numbers = {name: float(torch.stack([metrics[name] for metrics in sums]).mean()) for name in sums[0]}
        first = {"loss": numbers.pop("loss"), "grad_norm": numbers.pop("grad_norm"), "learning_rate": rate}
        return {**first, **numbers, "policy/optimizer_steps": len(sums)}

    def _step(self, minibatch: Sequence[Experience], before_clipping: Callable[[], None]) -> dict[str, Tensor] | None:
        """Take one optimizer step; every token of the minibatch weighs the same, whichever process has it.

        None where no token counts, as no answer could be scored: momentum alone must not move the policy.
        """
        device = self.policy.head.weight.device
        num_tokens = group.all_reduce(torch.tensor(float(sum(e.num_tokens for e in minibatch)), device=device))
        if not num_tokens:
            return None
        self.num_tokens += float(num_tokens)
        parts = [self._backward(one, one.num_tokens / num_tokens.clamp(min=1)) for one in minibatch]
        nothing = torch.zeros((), device=device)
        metrics = {name: sum((part[name] for part in parts), nothing) for name in parts[0]}
        weights = list(self.policy.trained.values())
        _sum_gradients(weights)
        before_clipping()
        norm = torch.nn.utils.clip_grad_norm_(weights, self.config.schedule.max_grad_norm)
        if not self.has_checked_gradients and float(norm) > 0:
            self.has_checked_gradients = check_gradients(self.policy.model)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        numbers = group.all_reduce(torch.stack(list(metrics.values()))).unbind()
        return {**dict(zip(metrics, numbers, strict=True)), "grad_norm": norm.detach()}

    def _backward(self, experience: Experience, share: Tensor) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch that is `share` of the minibatch; returns its part of the metrics."""
        ppo, mask_BT = self.config.ppo, experience.mask_BT
        now = self.policy.forward(experience.micro_batch, learns_entropy=ppo.entropy > 0)
        policy = losses.policy_loss(now.logp_BT, experience.old_BT, experience.advantages_BT, mask_BT, ppo.clip)
        entropy = losses.masked_mean(now.entropy_BT, mask_BT)
        loss = policy["loss"] - ppo.entropy * entropy
        if now.values_BT is None:
            (share * loss).backward()
            with self.policy.value_trunk():
                value = self._value_loss(self.policy.values(experience.micro_batch), experience)
                (share * ppo.value_weight * value["loss"]).backward()
            loss = loss.detach() + ppo.value_weight * value["loss"]
        else:
            value = self._value_loss(now.values_BT, experience)
            loss = loss + ppo.value_weight * value["loss"]
            (share * loss).backward()
        metrics = {"loss": loss, "policy/loss": policy.pop("loss"), "policy/entropy": entropy}
        metrics |= {f"policy/{name}": one for name, one in policy.items()}
        metrics |= {f"value/{name}": one for name, one in value.items()}
        return {name: share * one.detach() for name, one in metrics.items()}

    def _value_loss(self, values_BT: Tensor, one: Experience) -> dict[str, Tensor]:
        return losses.value_loss(values_BT, one.values_BT, one.returns_BT, one.mask_BT, self.config.ppo.value_clip)


def _sum_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes in one all-reduce: an adapter is small."""
    if group.world_size() == 1:
        return
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    together = group.all_reduce(torch.cat([gradient.reshape(-1).float() for gradient in gradients]))
    for weight, part in zip(weights, together.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight).to(weight.dtype)


# --- metrics ----------------------------------------------------------------------------------------------------------


def experience_metrics(
    experience: Sequence[Experience], results: Sequence[RewardResult], answers: Answers, config: PpoRun
) -> dict[str, float]:
    """The metrics that are logged of an update's answers, over all processes: means over answers, or over tokens.

    Rewards and KL are those of the answers that could be scored.
    """
    kl = sum(float(((one.old_BT - one.reference_BT) * one.mask_BT).sum()) for one in experience)
    num_tokens = sum(one.num_tokens for one in experience)
    totals = [result.total for result in results if result.is_scored]
    penalties = [config.ppo.missing_eos * (not ended) for ended in answers.have_ended]
    penalised = zip(results, penalties, strict=True)
    of_answers: dict[str, list[float]] = {
        "reward/mean": totals,
        **reward_values(results),
        "reward/with_penalty": [result.total - penalty for result, penalty in penalised if result.is_scored],
        "reward/errors": [float(len(result.errors)) for result in results],
        "answer/tokens": [float(len(ids)) for ids in answers.ids],
        "answer/ended": [float(ended) for ended in answers.have_ended],
    }
    sums = [[sum(values), float(len(values))] for values in of_answers.values()]
    together = group.all_reduce(torch.tensor(sums, dtype=torch.float64))
    means = together[:, 0] / together[:, 1].clamp(min=1)
    metrics = dict(zip(of_answers, means.tolist(), strict=True))
    counts = torch.tensor([kl, num_tokens, len(totals), len(results) - len(totals)], dtype=torch.float64)
    kl_sum, tokens, num_scored, num_failed = group.all_reduce(counts).tolist()
    metrics["reward/failed"] = num_failed
    metrics |= {"policy/kl_per_answer": kl_sum / max(num_scored, 1), "policy/kl": kl_sum / max(tokens, 1)}
    flat = (
        torch.cat([getattr(one, name).reshape(-1) for one in experience]).unsqueeze(0)
        for name in ("values_BT", "returns_BT", "mask_BT")
    )
    # Of the returns, by the values before the answers were learned from.
    explained = losses.explained_variance(*flat)
    if math.isfinite(explained):  # there is none where all returns are the same
        metrics["value/explained_variance"] = explained
    return metrics
