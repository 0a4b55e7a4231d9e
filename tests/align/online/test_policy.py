"""PPO's policy: its log-probabilities, its reference, its value trunk, and replayed routing."""

from __future__ import annotations

import pytest
import torch

from dsr1_tune.align.online import losses
from dsr1_tune.align.online import policy as policy_module
from dsr1_tune.align.online.generate import generate
from dsr1_tune.align.online.policy import MicroBatch, Policy
from dsr1_tune.models import head
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.start import begin_adapter
from tests.align.online.conftest import ANSWERS, FAMILIES, PROMPTS, PpoConfig, policy_of
from tests.conftest import TinyModel


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_policy_is_the_base_with_the_adapter_off(
    tiny_model: TinyModel, ppo_run: PpoConfig, family: str
) -> None:
    config = ppo_run(tiny_model(family))
    policy = policy_of(tiny_model(family), config, is_trained=True)
    micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
    now = policy.forward(micro_batch).logp_BT
    with policy.model.disable_adapter():
        off = policy.forward(micro_batch).logp_BT
    reference = policy.reference(micro_batch)
    mask = micro_batch.mask_BT.bool()
    torch.testing.assert_close(reference[mask], off[mask], rtol=0, atol=2e-5)
    assert (reference - now)[mask].abs().max() > 1e-2
    assert torch.equal(policy.forward(micro_batch).logp_BT, now), "the policy is as it was"
    num_base = sum(p.numel() for name, p in policy.model.named_parameters() if ".lora_" not in name)
    assert num_base == sum(p.numel() for p in load(config.base).model.parameters()), "the base is there once"


def test_policy_log_probs_are_those_of_the_whole_model(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), rollout={"max_new_tokens": 6, "temperature": 1.0})
    policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
    micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
    ours = policy.forward(micro_batch).logp_BT
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        logits = policy.model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
        told = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(ours[row, : len(answer)], told, rtol=1e-4, atol=1e-4)


def test_policy_learns_alike_from_pieces_of_the_logits(
    tiny_model: TinyModel, ppo_run: PpoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> list[torch.Tensor]:
        config = ppo_run(tiny_model("qwen3_moe"))
        policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
        micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
        output = policy.forward(micro_batch, learns_entropy=True)
        ((output.logp_BT + output.entropy_BT) * micro_batch.mask_BT).sum().backward()
        gradients = [weight.grad for weight in policy.trained.values() if weight.grad is not None]
        return [output.logp_BT.detach(), output.entropy_BT.detach(), *gradients]

    whole, heads = found(), list[int]()
    monkeypatch.setattr(head, "PIECE_NUMBERS", 3 * 258)
    told = losses.log_probs
    monkeypatch.setattr(policy_module, "log_probs", lambda x, *more: (heads.append(len(x)), told(x, *more))[1])
    for one, other in zip(found(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert max(heads) == 3 and sum(heads) == 2 * whole[0].numel(), "each piece again in the backward pass"


def test_own_value_trunk_gives_the_policy_no_gradient(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), ppo={"value": "own", "value_weight": 1.0})
    policy = policy_of(tiny_model("qwen3_moe"), config, is_trained=True)
    micro_batch = MicroBatch.of(PROMPTS, ANSWERS, "cpu")
    with policy.value_trunk():
        (policy.values(micro_batch) * micro_batch.mask_BT).sum().backward()
    moved = {name for name, weight in policy.trained.items() if weight.grad is not None and weight.grad.any()}
    assert moved and all(name.endswith(".value.weight") or name.startswith("value_head") for name in moved)
    policy.close()
    assert list(policy.model.peft_config) == ["default"]


def test_replayed_routing_is_that_of_the_rollout(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("deepseek_v3"), ppo={"routing_replay": True})
    loaded = load(config.base)
    policy = Policy(begin_adapter(loaded, config), config)
    torch.manual_seed(3)
    answers = generate(policy.model, PROMPTS, loaded.tokenizer, config.rollout, replay=policy.replay)
    policy.be_deterministic()
    assert [one.shape[1] for one in answers.routing] == [
        len(prompt) + len(answer) for prompt, answer in zip(PROMPTS, answers.ids, strict=True)
    ]
    micro_batch = MicroBatch.of(PROMPTS, answers.ids, "cpu")
    free = policy.forward(micro_batch).logp_BT
    replayed = policy.forward(micro_batch.with_routing(answers.routing), counts_replay=True).logp_BT
    torch.testing.assert_close(replayed, free, rtol=1e-4, atol=1e-4)
    # In float32 rollout and update choose alike: nothing is replaced. Others' experts give another answer.
    assert policy.replay is not None and policy.replay.take_share() < 0.02
    others = [torch.where(one < 0, one, (one + 1) % 4) for one in answers.routing]
    other = policy.forward(micro_batch.with_routing(others), counts_replay=True).logp_BT
    assert (other - free).abs().max() > 1e-2
    assert policy.replay.take_share() > 0.3
