"""PPO's optimizer steps: ratios of 1, gradients that neither padding nor checkpointing changes, and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsr1_tune.align.online import losses as objective
from dsr1_tune.align.online.generate import Answers
from dsr1_tune.align.online.learner import PpoLearner, experience_metrics
from dsr1_tune.errors import RunError
from tests.align.online.conftest import ANSWERS, FAMILIES, PpoConfig, experience_of, policy_of, results_of
from tests.conftest import TinyModel


@pytest.mark.parametrize("family", FAMILIES)
def test_learner_starts_with_a_ratio_of_exactly_one_and_a_kl_of_zero(
    tiny_model: TinyModel, ppo_run: PpoConfig, family: str
) -> None:
    base = tiny_model(family)
    config = ppo_run(base, schedule={"batch_size": 2, "gradient_checkpointing": True})
    policy = policy_of(base, config)
    learner = PpoLearner(policy, config, 4)
    for one in experience_of(policy, config):
        assert torch.equal(one.old_BT, one.reference_BT)
        told = learner._backward(one, torch.tensor(1.0))
        assert float(told["policy/ratio"]) == 1.0
        assert float(told["policy/approx_kl"]) == 0.0
        assert float(told["policy/clip_fraction"]) == 0.0
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in policy.trained.values())


@pytest.mark.parametrize("value", ["shared", "own"])
def test_learner_gradients_do_not_depend_on_padding(tiny_model: TinyModel, ppo_run: PpoConfig, value: str) -> None:
    """All answers together, padded to the longest, and each by itself: the same loss and the same gradients."""
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"answers": 4, "minibatches": 1, "value": value, "entropy": 0.01})
    policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
    learner = PpoLearner(policy, config, 4)
    gradients, losses = [], []
    for size in (4, 1):
        sized = config.model_copy(update={"schedule": config.schedule.model_copy(update={"batch_size": size})})
        experience = experience_of(policy, sized)
        # As in the middle of an update: the old policy is another one.
        experience = [replace(one, old_BT=one.old_BT - 0.1 * torch.cos(one.old_BT)) for one in experience]
        num_tokens = sum(one.num_tokens for one in experience)
        told = [learner._backward(one, torch.tensor(one.num_tokens / num_tokens)) for one in experience]
        losses.append({name: sum(float(one[name]) for one in told) for name in told[0]})
        gradients.append({name: weight.grad.clone() for name, weight in policy.trained.items()})
        learner.optimizer.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


def test_learner_gradients_do_not_depend_on_gradient_checkpointing(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    base = tiny_model("qwen3_moe")
    gradients = []
    for is_on in (False, True):
        config = ppo_run(base, schedule={"gradient_checkpointing": is_on}, ppo={"value": "own", "routing_replay": True})
        policy = policy_of(base, config, is_trained=True)
        learner = PpoLearner(policy, config, 4)
        for one in experience_of(policy, config):
            learner._backward(one, torch.tensor(1.0))
        gradients.append({name: weight.grad for name, weight in policy.trained.items()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "ppo_state.json"])
def test_learner_refuses_a_damaged_checkpoint(
    tiny_model: TinyModel, ppo_run: PpoConfig, tmp_path: Path, name: str
) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"kl": 0.3})
    learner = PpoLearner(policy_of(tiny_model("qwen3_moe"), config), config, 4)
    learner.save(tmp_path)
    learner.beta = 0.0
    learner.load(tmp_path)
    assert learner.beta == 0.3
    (tmp_path / name).write_bytes(b"rubbish")
    with pytest.raises(RunError, match="cannot be read"):
        learner.load(tmp_path)


def test_rewards_land_on_the_last_token_and_the_kl_on_each(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    """The score lands on the last token, less the penalty where the answer did not end; the KL on each token."""
    config = ppo_run(
        tiny_model("qwen3_moe"), schedule={"batch_size": 4}, ppo={"missing_eos": 0.25, "kl": 0.1, "minibatches": 1}
    )
    policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
    (one,) = experience_of(policy, config)
    assert sorted(one.score_B.tolist()) == sorted([1.0, 0.0 - 0.25, 0.5 - 0.25, 2.0])
    kl_BT = (one.old_BT - one.reference_BT) * one.mask_BT
    torch.testing.assert_close((one.rewards_BT + 0.1 * kl_BT).sum(1), one.score_B)
    assert float(objective.masked_mean(one.advantages_BT, one.mask_BT)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("value", ["shared", "own"])
def test_an_answer_without_a_score_changes_nothing(tiny_model: TinyModel, ppo_run: PpoConfig, value: str) -> None:
    """Three answers and one that could not be scored: the experience, losses and gradients of the three alone."""
    ppo = {"answers": 4, "minibatches": 1, "value": value, "entropy": 0.01, "whiten_rewards": True}
    config = ppo_run(tiny_model("qwen3_moe"), ppo=ppo, schedule={"batch_size": 1})
    policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
    learner = PpoLearner(policy, config, 4)
    told, gradients, counted = [], [], []
    for scores in ((1.0, 0.0, 0.5), (1.0, 0.0, 0.5, 99.0)):
        experience = experience_of(policy, config, scores, failed=(3,))
        counted.append([one for one in experience if one.num_tokens])
        num_tokens = sum(one.num_tokens for one in experience)
        parts = [learner._backward(one, torch.tensor(one.num_tokens / num_tokens)) for one in experience]
        told.append({name: sum(float(part[name]) for part in parts) for name in parts[0]})
        gradients.append({name: weight.grad.clone() for name, weight in policy.trained.items()})
        learner.optimizer.zero_grad()
    assert len(counted[1]) == len(counted[0]) == 3 and told[1] == pytest.approx(told[0], rel=1e-5, abs=1e-7)
    by_length = [sorted(some, key=lambda one: one.num_tokens) for some in counted]
    for ours, theirs in zip(*by_length, strict=True):
        torch.testing.assert_close(ours.advantages_BT, theirs.advantages_BT)
        torch.testing.assert_close(ours.returns_BT, theirs.returns_BT)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


def test_a_minibatch_without_a_score_takes_no_step(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"answers": 4, "minibatches": 4, "epochs": 1})
    policy = policy_of(tiny_model("qwen3_moe"), config)
    learner = PpoLearner(policy, config, 4)
    experience = [[one] for one in experience_of(policy, config, failed=(0, 2, 3))]
    assert sum(one.num_tokens > 0 for (one,) in experience) == 1
    metrics = learner.update(experience, 1, lambda: None)
    assert metrics["policy/optimizer_steps"] == 1 and metrics["policy/ratio"] == 1.0
    before = {name: weight.clone() for name, weight in policy.trained.items()}
    (empty, *_) = [one for one in experience if not one[0].num_tokens]
    assert learner._step(empty, lambda: None) is None
    assert all(torch.equal(weight, before[name]) for name, weight in policy.trained.items())


def test_metrics_are_those_of_answers_with_a_score(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"answers": 4, "minibatches": 1, "missing_eos": 0.25})
    policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
    scores = (1.0, 0.0, 0.5, 2.0)
    experience = experience_of(policy, config, scores, failed=(1,))
    results = [replace(one, layers={"task": one.total}, components={"task/a": 1.0}) for one in results_of(scores, (1,))]
    metrics = experience_metrics(experience, results, Answers(ANSWERS, (True, False, False, True)), config)
    assert metrics["reward/mean"] == metrics["reward/task"] == pytest.approx(3.5 / 3)
    assert metrics["reward/with_penalty"] == pytest.approx(3.25 / 3)
    assert (metrics["reward/failed"], metrics["reward/errors"], metrics["answer/ended"]) == (1, 0.25, 0.5)
    assert metrics["answer/tokens"] == pytest.approx(14 / 4)
    kl = sum(float(((one.old_BT - one.reference_BT) * one.mask_BT).sum()) for one in experience)
    assert metrics["policy/kl_per_answer"] == pytest.approx(kl / 3)
    assert metrics["policy/kl"] == pytest.approx(kl / 10)
