"""PPO's optimizer steps: ratios of 1, gradients that neither padding nor checkpointing changes, and checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsr1_tune.align.online import losses as objective
from dsr1_tune.align.online.learner import PpoLearner
from dsr1_tune.errors import RunError
from tests.align.online.conftest import FAMILIES, PpoConfig, experience_of, policy_of
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
