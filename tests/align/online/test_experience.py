"""PPO's experience: rewards per token and advantages."""

from __future__ import annotations

import pytest
import torch

from dsr1_tune.align.online import losses as objective
from tests.align.online.conftest import PpoConfig, experience_of, policy_of
from tests.conftest import TinyModel


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
