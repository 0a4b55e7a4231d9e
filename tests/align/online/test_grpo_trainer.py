"""GRPO's trainer: the order of its prompts."""

from __future__ import annotations

import torch

from dsr1_tune.align.online.generate import Answers
from dsr1_tune.align.online.grpo_trainer import GroupOrder, left_out, reward_metrics
from dsr1_tune.align.rewards.layered import RewardResult


def test_group_order_depends_on_seed_and_epoch_alone_and_leaves_no_prompt_out() -> None:
    def order(epoch: int, seed: int = 3) -> list[int]:
        sampler = GroupOrder(7, num_prompts=3, group=2, repeats=2, seed=seed)
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == 3 * 3 * 2 * 2
        return drawn

    assert order(1) == order(1) and order(1) != order(0) != order(0, seed=4)
    for epoch in range(3):
        drawn = order(epoch)
        assert set(drawn) == set(range(7))
        assert drawn[:6] == drawn[6:12] and drawn[0] == drawn[1] and drawn[2] == drawn[3]
    assert set(GroupOrder(2, num_prompts=4, group=2, repeats=1, seed=0)) == {0, 1}


def test_reward_metrics_are_of_answers_with_a_score_and_of_components_that_gave_one() -> None:
    results = [
        RewardResult(1.0, layers={"task": 1.0}, components={"task/a": 1.0, "task/b": 0.5}),
        RewardResult(0.0, layers={"task": 0.0}, components={"task/a": 0.0, "task/b": 0.0}, errors=("task/b: no idea",)),
    ]
    assert reward_metrics(results, Answers(((5, 1), (6,)), (True, False))) == {
        "reward/task": [1.0],
        "reward/task/a": [1.0, 0.0],
        "reward/task/b": [0.5],
        "reward/errors": [0.0, 1.0],
        "answer/ended": [1.0, 0.0],
    }


def test_nothing_is_learned_from_answers_without_a_score_or_without_another_to_compare_with() -> None:
    nan = float("nan")
    rewards = torch.tensor([1.0, nan, 0.0, nan, 2.0, nan, nan, nan, nan, 5.0, 5.0, 5.0])
    assert left_out(rewards, 3).tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert not left_out(torch.zeros(6), 2).any()
