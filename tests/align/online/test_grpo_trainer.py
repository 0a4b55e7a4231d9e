"""GRPO's trainer: the order of its prompts."""

from __future__ import annotations

from dsr1_tune.align.online.grpo_trainer import GroupOrder


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
