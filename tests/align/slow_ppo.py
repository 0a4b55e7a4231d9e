"""PPO written a second time, slowly: one answer, one token, one number at a time, as the papers put it.

Nothing here knows of tensors, batches or padding: N answers are N lists, each as long as its answer. It is what the
fast formulas are compared with. Papers: GAE (arXiv 1506.02438), PPO (arXiv 1707.06347), PPO on language models with
its KL penalty and controller (arXiv 1909.08593).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Row = list[float]
Rows = list[Row]


def log_prob(logits: Row, token: int, temperature: float) -> float:
    """log p(token), where p is the softmax of logits / temperature."""
    return logits[token] / temperature - _log_sum(logits, temperature)


def entropy(logits: Row, temperature: float) -> float:
    """-Σ p log p over the vocabulary."""
    log_probs = [log_prob(logits, token, temperature) for token in range(len(logits))]
    return -math.fsum(math.exp(log_p) * log_p for log_p in log_probs)


def _log_sum(logits: Row, temperature: float) -> float:
    return math.log(math.fsum(math.exp(logit / temperature) for logit in logits))


def rewards_per_token(scores: Row, logp: Rows, ref_logp: Rows, beta: float) -> Rows:
    """R = r - β log(π/ρ) (1909.08593, eq. 2), the KL term paid token by token, r on an answer's last token."""
    rewards = []
    for score, answer, ref_answer in zip(scores, logp, ref_logp, strict=True):
        paid = [-beta * (log_p - ref_log_p) for log_p, ref_log_p in zip(answer, ref_answer, strict=True)]
        paid[-1] += score
        rewards.append(paid)
    return rewards


def advantages(rewards: Rows, values: Rows, gamma: float, lam: float) -> tuple[Rows, Rows]:
    """A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} - V_t (1506.02438, eq. 16), and the returns A_t + V_t."""
    all_advantages, all_returns = [], []
    for paid, worth in zip(rewards, values, strict=True):
        ends = len(paid)
        after = [*worth[1:], 0.0]  # nothing is to be had after the last token
        deltas = [paid[t] + gamma * after[t] - worth[t] for t in range(ends)]
        found = [
            math.fsum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, ends)) for t in range(ends)
        ]
        all_advantages.append(found)
        all_returns.append([found[t] + worth[t] for t in range(ends)])
    return all_advantages, all_returns


def whiten(rows: Rows, shift_mean: bool = True) -> Rows:
    """Mean 0 and variance 1 over all tokens of all answers; without `shift_mean` the mean stays what it was."""
    every = _flat(rows)
    mean, spread = _mean(every), math.sqrt(variance(every) + 1e-8)
    return [[(x - mean) / spread + (0.0 if shift_mean else mean) for x in row] for row in rows]


@dataclass(frozen=True)
class Policy:
    """What comes of the clipped surrogate objective."""

    loss: float
    clip_fraction: float
    approx_kl: float
    mean_ratio: float


def policy_loss(logp: Rows, old_logp: Rows, advantages: Rows, clip: float) -> Policy:
    """-mean min(r A, clip(r, 1-ε, 1+ε) A) over all tokens (1707.06347, eq. 7).

    `clip_fraction` is the share of tokens at which the clipped term is the smaller one; `approx_kl` the mean of
    (r - 1) - log r, whose expectation under the old policy is KL(old, new).
    """
    losses, clipped, divergences, ratios = [], [], [], []
    for new, old, gain in zip(_flat(logp), _flat(old_logp), _flat(advantages), strict=True):
        ratio = math.exp(new - old)
        plain, held = ratio * gain, min(max(ratio, 1 - clip), 1 + clip) * gain
        losses.append(-min(plain, held))
        clipped.append(1.0 if held < plain else 0.0)
        divergences.append((ratio - 1) - (new - old))
        ratios.append(ratio)
    return Policy(_mean(losses), _mean(clipped), _mean(divergences), _mean(ratios))


@dataclass(frozen=True)
class Value:
    """What comes of the clipped value objective."""

    loss: float
    clip_fraction: float


def value_loss(values: Rows, old_values: Rows, returns: Rows, clip: float) -> Value:
    """½ mean max((V - R)², (V_clipped - R)²), where V_clipped is at most `clip` away from the old value."""
    losses, clipped = [], []
    for new, old, target in zip(_flat(values), _flat(old_values), _flat(returns), strict=True):
        held = min(max(new, old - clip), old + clip)
        plain_error, held_error = (new - target) ** 2, (held - target) ** 2
        losses.append(max(plain_error, held_error) / 2)
        clipped.append(1.0 if held_error > plain_error else 0.0)
    return Value(_mean(losses), _mean(clipped))


def next_beta(beta: float, kl: float, target: float, num_answers: int, horizon: float) -> float:
    """β (1 + K e), e = clip(KL / target - 1, -0.2, 0.2) (1909.08593, section 2.2), K = answers / horizon."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * num_answers / horizon)


def explained_variance(values: Rows, returns: Rows) -> float:
    """1 - Var(R - V) / Var(R): 1 where values foretell returns, 0 where a constant would do as well."""
    every = _flat(returns)
    left = [target - value for target, value in zip(every, _flat(values), strict=True)]
    return 1 - variance(left) / variance(every)


def variance(numbers: Row) -> float:
    """The mean squared distance from the mean."""
    mean = _mean(numbers)
    return _mean([(x - mean) ** 2 for x in numbers])


def _mean(numbers: Row) -> float:
    return math.fsum(numbers) / len(numbers)


def _flat(rows: Rows) -> Row:
    return [x for row in rows for x in row]
