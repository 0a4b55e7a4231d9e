"""Generated answers: greedy ones are the likeliest, and the base's own generation settings do not count."""

from __future__ import annotations

import torch

from dsr1_tune.align.online.generate import generate
from dsr1_tune.align.online.policy import MicroBatch, Policy
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.start import begin_adapter
from tests.align.online.conftest import PROMPTS, PpoConfig
from tests.conftest import TinyModel


def test_generated_greedy_tokens_are_the_likeliest_of_the_policy(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    """The greedy answer's tokens are the likeliest of those that the policy can say, at every place."""
    config = ppo_run(tiny_model("deepseek_v3"))
    loaded = load(config.base)
    policy = Policy(begin_adapter(loaded, config), config)
    answers = generate(policy.model, PROMPTS, loaded.tokenizer, config.rollout, is_greedy=True)
    policy.be_deterministic()
    micro_batch = MicroBatch.of(PROMPTS, answers.ids, "cpu")
    logits = policy.model.get_output_embeddings()(policy._hidden(micro_batch))
    mask = micro_batch.mask_BT.bool()
    assert torch.equal(logits.argmax(-1)[mask], micro_batch.answer_BT[mask])


def test_generate_ignores_the_models_own_generation_config(tiny_model: TinyModel, ppo_run: PpoConfig) -> None:
    config = ppo_run(tiny_model("qwen3_moe"))
    loaded = load(config.base)
    torch.manual_seed(1)
    plain = generate(loaded.model, PROMPTS, loaded.tokenizer, config.rollout)
    loaded.model.generation_config.suppress_tokens = list(range(20, 250))
    loaded.model.generation_config.min_new_tokens = 3
    loaded.model.generation_config.num_return_sequences = 2
    torch.manual_seed(1)
    assert generate(loaded.model, PROMPTS, loaded.tokenizer, config.rollout) == plain
    assert loaded.model.generation_config.min_new_tokens == 3
