"""A small policy of PPO with prompts and answers, for the tests of its parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dsr1_tune.align.online.generate import Answers
from dsr1_tune.align.online.learner import Experience, PpoLearner
from dsr1_tune.align.online.policy import Policy
from dsr1_tune.align.online.session import PromptExample
from dsr1_tune.align.rewards.layered import RewardResult
from dsr1_tune.config import PpoRun
from dsr1_tune.data.record import Message, Place, Prompt, Record
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.start import begin_adapter

FAMILIES = ["deepseek_v3", "qwen3_moe", "gpt_oss"]

PROMPTS = ((5, 6, 7), (9, 8, 7, 6, 5, 4), (20, 21), (30, 31, 32, 33))

ANSWERS = ((40, 41, 1), (42, 43, 44, 45), (46,), (47, 48, 49, 50, 51, 1))

PpoConfig = Callable[..., PpoRun]


def policy_of(base: Path, config: PpoRun, is_trained: bool = False) -> Policy:
    torch.manual_seed(0)
    model = begin_adapter(load(config.base), config)
    policy = Policy(model, config)
    if is_trained:
        with torch.no_grad():
            for weight in policy.trained.values():
                weight.add_(torch.randn_like(weight) * 0.05)
    return policy


def prompt_of(ids: tuple[int, ...]) -> PromptExample:
    prompt = Prompt((Message("user", "?"),), None, Place("x", 1, 0))
    return PromptExample(prompt, Record(prompt.messages, prompt.place), ids)


def results_of(scores: tuple[float, ...], failed: tuple[int, ...] = ()) -> list[RewardResult]:
    errors = ("task/own: ValueError: no",)
    return [RewardResult(score, errors=errors if row in failed else ()) for row, score in enumerate(scores)]


def experience_of(
    policy: Policy,
    config: PpoRun,
    scores: tuple[float, ...] = (1.0, 0.0, 0.5, 2.0),
    failed: tuple[int, ...] = (),
) -> list[Experience]:
    answers = Answers(ANSWERS[: len(scores)], tuple(ids[-1] == 1 for ids in ANSWERS[: len(scores)]))
    results = results_of(scores, failed)
    learner = PpoLearner(policy, config, len(PROMPTS))
    minibatches = learner.experience([prompt_of(ids) for ids in PROMPTS[: len(scores)]], answers, results, step=1)
    return [one for minibatch in minibatches for one in minibatch]
