"""How PPO learns from an update's answers: passes over minibatches, policy and value loss, optimizer steps.

Letters: B answers of a micro-batch, T tokens of the longest of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.align.online import losses
from dsr1_tune.align.online.checkpoint import load_state, save_state
from dsr1_tune.align.online.experience import Experience
from dsr1_tune.align.online.policy import Policy
from dsr1_tune.align.online.steps import Steps
from dsr1_tune.config import PpoRun
from dsr1_tune.models.trained.lora import check_gradients
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.trainer import optimizers

LOGGED = (
    "loss", "policy/loss", "policy/entropy", "policy/clip_fraction", "policy/approx_kl", "policy/ratio", "value/loss",
    "value/clip_fraction",
)  # fmt: skip
"""The metrics of an optimizer step, each a sum over its micro-batches."""


@dataclass
class PpoLearner:
    """PPO's optimizer and learning rate schedule, and the coefficient of the KL penalty, which may adapt."""

    policy: Policy
    config: PpoRun
    optimizer: torch.optim.Optimizer
    scheduler: Any
    beta: float
    num_updates: int
    num_tokens: float = 0.0
    """Tokens trained on since this process started, over all processes."""
    has_checked_gradients: bool = False

    @classmethod
    def create(cls, policy: Policy, config: PpoRun, num_prompts: int) -> PpoLearner:
        """The learner of a run before its first update."""
        schedule = config.schedule
        num_updates = schedule.max_steps or math.ceil(schedule.epochs * num_prompts / config.ppo.answers)
        optimizer = optimizers.for_run(policy.model, config, quantized=config.method == "qlora")
        # The head begins at zero: with an adapter's small learning rate it would hardly move.
        optimizer.add_param_group({"params": list(policy.head.parameters()), "lr": config.ppo.value_learning_rate})
        num_warmup = round(schedule.warmup_share * num_updates)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: _rate_factor(done, num_warmup, num_updates)
        )
        return cls(policy, config, optimizer, scheduler, config.ppo.kl, num_updates)

    def save(self, folder: Path) -> None:
        """Save a checkpoint."""
        save_state(folder, self.policy.trained, self.optimizer, self.scheduler, self.beta)

    def load(self, folder: Path) -> None:
        """Load a checkpoint to resume from."""
        self.beta = load_state(folder, self.policy.trained, self.optimizer, self.scheduler)

    def update(self, minibatches: Sequence[Sequence[Experience]], step: int, steps: Steps) -> dict[str, float]:
        """Take ppo.epochs passes over the answers, fewer where ppo.stop_kl is exceeded; returns metrics."""
        ppo = self.config.ppo
        sums: list[dict[str, Tensor]] = []
        for epoch in range(ppo.epochs):
            order = random.Random(f"{self.config.schedule.seed} {step} {epoch}")
            for minibatch in order.sample(minibatches, len(minibatches)):
                metrics = self._step(minibatch, steps)
                sums.append(metrics)
                if ppo.stop_kl and float(metrics["policy/approx_kl"]) > ppo.stop_kl:
                    break
            else:
                continue
            break
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        numbers = {name: float(torch.stack([metrics[name] for metrics in sums]).mean()) for name in sums[0]}
        return {
            "loss": numbers.pop("loss"),
            "grad_norm": numbers.pop("grad_norm"),
            "learning_rate": rate,
            **numbers,
            "policy/optimizer_steps": len(sums),
        }

    def _step(self, minibatch: Sequence[Experience], steps: Steps) -> dict[str, Tensor]:
        """Take one optimizer step; every token of the minibatch weighs the same, whichever process has it."""
        device = self.policy.head.weight.device
        num_tokens = group.all_reduce(torch.tensor(float(sum(e.num_tokens for e in minibatch)), device=device))
        self.num_tokens += float(num_tokens)
        metrics = dict.fromkeys(LOGGED, torch.zeros((), device=device))
        for experience in minibatch:
            share = experience.num_tokens / num_tokens.clamp(min=1)
            for name, value in self._backward(experience, share).items():
                metrics[name] = metrics[name] + value
        weights = list(self.policy.trained.values())
        _sum_gradients(weights)
        steps.watcher.before_clipping()
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
        loss = policy.loss - ppo.entropy * entropy
        if now.values_BT is None:
            (share * loss).backward()
            with self.policy.value_trunk():
                value = self._value_loss(self.policy.values(experience.micro_batch), experience)
                (share * ppo.value_weight * value.loss).backward()
            loss = loss.detach() + ppo.value_weight * value.loss
        else:
            value = self._value_loss(now.values_BT, experience)
            loss = loss + ppo.value_weight * value.loss
            (share * loss).backward()
        values = (
            loss, policy.loss, entropy, policy.clip_fraction, policy.approx_kl, policy.ratio, value.loss,
            value.clip_fraction,
        )  # fmt: skip
        return {name: share * one.detach() for name, one in zip(LOGGED, values, strict=True)}

    def _value_loss(self, values_BT: Tensor, experience: Experience) -> losses.ValueLoss:
        return losses.value_loss(
            values_BT, experience.values_BT, experience.returns_BT, experience.mask_BT, self.config.ppo.value_clip
        )


def _rate_factor(num_done: int, num_warmup: int, num_updates: int) -> float:
    """The share of the peak learning rate: linear warm-up, never zero, as updates are expensive; then a cosine."""
    if num_done < num_warmup:
        return (num_done + 1) / (num_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (num_done - num_warmup) / max(num_updates - num_warmup, 1)))


def _sum_gradients(weights: Sequence[torch.nn.Parameter]) -> None:
    """Sum the gradients over all processes in one all-reduce: an adapter is small."""
    if group.world_size() == 1:
        return
    gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    together = group.all_reduce(torch.cat([gradient.reshape(-1).float() for gradient in gradients]))
    for weight, part in zip(weights, together.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = part.view_as(weight).to(weight.dtype)
