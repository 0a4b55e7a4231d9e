"""The mathematics of PPO, each formula by itself: log-probabilities, rewards per token, advantages and losses.

Letters: B answers, T their tokens (right-padded; `mask` is 1 on an answer's own tokens, its end-of-turn token among
them, else 0), V words. Means are over all tokens that the mask counts, so that an answer weighs as much as it is long.

Sources: PPO arXiv 1707.06347; GAE arXiv 1506.02438; the KL penalty and its controller arXiv 1909.08593; details of
implementation arXiv 2403.17031.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsr1_tune.runs.distributed.group import all_reduce


def log_probs(
    logits_BTV: Tensor, ids_BT: Tensor, temperature: float = 1.0, learns_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """(log-probability of every sampled token, entropy of its distribution), both (B, T), in nats.

    An entropy that is not learned from takes no memory for its gradient, which is as much as the logits take.
    """
    wide = logits_BTV.dtype if logits_BTV.dtype == torch.float64 else torch.float32
    logits_BTV = logits_BTV.to(wide) / temperature
    total_BT = logits_BTV.logsumexp(-1)
    logp_BT = logits_BTV.gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1) - total_BT
    with torch.set_grad_enabled(learns_entropy and torch.is_grad_enabled()):
        entropy_BT = total_BT - ((logits_BTV - total_BT.unsqueeze(-1)).exp() * logits_BTV).sum(-1)
    return logp_BT, entropy_BT


def rewards_per_token(score_B: Tensor, logp_BT: Tensor, ref_logp_BT: Tensor, mask_BT: Tensor, beta: float) -> Tensor:
    """-β (log π - log π_ref) on every token, and on an answer's last one its score."""
    rewards_BT = -beta * (logp_BT - ref_logp_BT) * mask_BT
    num_tokens_B1 = mask_BT.long().sum(1, keepdim=True)
    score_B1 = score_B.unsqueeze(1) * (num_tokens_B1 > 0)  # an answer without tokens has no last one
    return rewards_BT.scatter_add(1, (num_tokens_B1 - 1).clamp(min=0), score_B1)


def advantages(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE(γ, λ) and returns: A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} - V_t, and A_t + V_t; 0 on padding."""
    values_BT = values_BT * mask_BT
    later_B, next_value_B = torch.zeros_like(values_BT[:, 0]), torch.zeros_like(values_BT[:, 0])
    backwards = []
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        later_B = (delta_B + gamma * lam * later_B) * mask_BT[:, t]
        next_value_B = values_BT[:, t]
        backwards.append(later_B)
    advantages_BT = torch.stack(backwards[::-1], dim=1)
    return advantages_BT, advantages_BT + values_BT


def moments(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance over what masks count, in several tensors and in all processes."""
    pairs = list(zip(tensors, masks, strict=True))
    count = all_reduce(torch.stack([mask.sum() for _, mask in pairs]).sum()).clamp(min=1)
    mean = all_reduce(torch.stack([(x * mask).sum() for x, mask in pairs]).sum()) / count
    squares = all_reduce(torch.stack([((x - mean).square() * mask).sum() for x, mask in pairs]).sum())
    return mean, squares / count


def whitened(tensors: Sequence[Tensor], masks: Sequence[Tensor], shift_mean: bool = True) -> list[Tensor]:
    """Variance 1 and, with `shift_mean`, mean 0, over what the masks count in all of them, of all processes; 0 else."""
    mean, variance = moments(tensors, masks)
    scaled = [(x - mean) * torch.rsqrt(variance + 1e-8) for x in tensors]
    return [(x if shift_mean else x + mean) * mask for x, mask in zip(scaled, masks, strict=True)]


def policy_loss(
    logp_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float
) -> dict[str, Tensor]:
    """`loss`: -min(r A, clip(r, 1 - ε, 1 + ε) A), where r is the ratio of new to old probability of a token.

    `clip_fraction`: the share of tokens whose ratio is held back by the clip. `approx_kl`: how far the policy has moved
    from the one that answered, in nats per token: mean of r - 1 - log r. `ratio`: mean r.
    """
    log_ratio_BT = (logp_BT - old_BT) * mask_BT
    ratio_BT = log_ratio_BT.exp()
    free_BT = -advantages_BT * ratio_BT
    held_BT = -advantages_BT * ratio_BT.clamp(1 - clip, 1 + clip)
    return {
        "loss": masked_mean(torch.maximum(free_BT, held_BT), mask_BT),
        "clip_fraction": masked_mean((held_BT > free_BT).to(free_BT).detach(), mask_BT),
        "approx_kl": masked_mean((ratio_BT - 1 - log_ratio_BT).detach(), mask_BT),
        "ratio": masked_mean(ratio_BT.detach(), mask_BT),
    }


def value_loss(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float
) -> dict[str, Tensor]:
    """`loss`: ½ max((V - R)², (V_clipped - R)²), where V_clipped is at most `clip` away from the old value.

    `clip_fraction`: the share of tokens that the clip holds back.
    """
    near_BT = torch.minimum(torch.maximum(values_BT, old_BT - clip), old_BT + clip)
    free_BT, held_BT = (values_BT - returns_BT).square(), (near_BT - returns_BT).square()
    return {
        "loss": 0.5 * masked_mean(torch.maximum(free_BT, held_BT), mask_BT),
        "clip_fraction": masked_mean((held_BT > free_BT).to(free_BT).detach(), mask_BT),
    }


def next_beta(beta: float, kl: float, target: float, num_answers: int, horizon: float = 10_000.0) -> float:
    """The adaptive KL controller: β grows where an answer's KL is above the target, at most 20 % per `horizon`."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * num_answers / horizon)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 where values predict the returns exactly, 0 where a constant would do as well.

    Over all processes; not a number where all returns are the same.
    """
    _, of_returns = moments([returns_BT], [mask_BT])
    _, of_errors = moments([returns_BT - values_BT], [mask_BT])
    return float(1 - of_errors / of_returns) if of_returns > 0 else float("nan")


def masked_mean(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean over what the mask counts; 0 where it counts nothing."""
    return (x_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)
