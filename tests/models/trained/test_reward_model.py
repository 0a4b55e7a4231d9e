"""Tests of the reward model: its score is that of the last real token, whatever stands around it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Adapter
from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained.lora import add_lora, audit
from dsr1_tune.models.trained.reward_model import RewardFacts, ScalarModel, load_scalar
from tests.conftest import tiny_config

FAMILIES = ["deepseek_v3", "deepseek_v2", "glm4_moe", "qwen3_moe", "mixtral", "gpt_oss", "llama"]
IDS = [[5, 9, 200, 31, 7], [77, 3], [12, 13, 14, 15, 16, 17, 18, 19]]


def scalar_of(family: str, tokenizer: Any, adapter: Adapter | None = None, **changes: Any) -> ScalarModel:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    trunk = AutoModelForCausalLM.from_config(tiny_config(family, **changes)).eval()
    for weight in trunk.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return ScalarModel(add_lora(trunk, adapter) if adapter else trunk, tokenizer).eval()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_same_with_padding_on_either_side(family: str, tiny_tokenizer: Any) -> None:
    model = scalar_of(family, tiny_tokenizer, Adapter(rank=2))
    alone_N = torch.cat([model(torch.tensor([ids])).logits[:, 0] for ids in IDS])
    longest = max(map(len, IDS))
    for is_left in (False, True):
        ids_NT, mask_NT = torch.full((3, longest), 1), torch.zeros((3, longest), dtype=torch.long)
        for row, ids in enumerate(IDS):
            here = slice(longest - len(ids), longest) if is_left else slice(0, len(ids))
            ids_NT[row, here], mask_NT[row, here] = torch.tensor(ids), 1
        torch.testing.assert_close(model(ids_NT, mask_NT).logits[:, 0], alone_N, atol=1e-5, rtol=1e-4)
    assert alone_N.std() > 1e-3


def test_scores_come_in_order_whatever_the_batches_are(tiny_tokenizer: Any) -> None:
    model = scalar_of("deepseek_v3", tiny_tokenizer).train()
    alone_N = torch.cat([model.score([ids]) for ids in IDS])
    counted: list[int] = []
    torch.testing.assert_close(model.score(IDS, batch_size=2, advance=counted.append), alone_N, atol=1e-5, rtol=1e-4)
    assert (sum(counted), model.training) == (3, True)
    text = "<|im_start|>user\nhello<|im_end|>"
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert torch.equal(model.score([text]), model.score([ids]))


def test_scalar_model_neither_runs_nor_trains_the_language_head(tiny_tokenizer: Any) -> None:
    model = scalar_of("qwen3_moe", tiny_tokenizer)
    model.trunk.lm_head.register_forward_hook(lambda *_: pytest.fail("the language head was run"))
    model(torch.tensor(IDS[:1])).logits.sum().backward()
    assert not model.trunk.lm_head.weight.requires_grad
    assert float(model.head.weight.grad.abs().max()) > 0  # type: ignore[union-attr]
    assert float(model.get_input_embeddings().weight.grad.abs().max()) > 0


def test_scalar_model_trains_tied_embeddings_all_the_same(tiny_tokenizer: Any) -> None:
    assert scalar_of("llama", tiny_tokenizer).get_input_embeddings().weight.requires_grad


def test_scalar_models_audit_knows_the_parts_of_its_trunk(tiny_tokenizer: Any) -> None:
    model = scalar_of("deepseek_v3", tiny_tokenizer, Adapter(rank=2))
    of_trunk = {line.part: line for line in audit(model.trunk)}
    found = {line.part: line for line in audit(model)}
    assert found.pop("other").num_trained == 64
    assert found == of_trunk


def test_scalar_heads_can_share_one_trunk(tiny_tokenizer: Any) -> None:
    one = scalar_of("deepseek_v3", tiny_tokenizer)
    other = ScalarModel(one.trunk, tiny_tokenizer).eval()
    assert one.trunk is other.trunk
    assert not torch.equal(one.score(IDS), other.score(IDS))


def test_check_reward_refuses_what_is_no_reward_model(tiny_base: Path, tmp_path: Path) -> None:
    for place in (tiny_base, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match="is no reward model") as told:
            load_scalar(place)
        assert "dsr1-tune reward" in told.value.hint


def test_reward_facts_read_the_key_as_it_was_spelled_before(tmp_path: Path) -> None:
    tree = asdict(RewardFacts(base="org/base", is_quantized=True))
    tree["is_quantised"] = tree.pop("is_quantized")
    (tmp_path / "reward_config.json").write_text(json.dumps(tree))
    assert RewardFacts.read(tmp_path) == RewardFacts(base="org/base", is_quantized=True)
    del tree["think"]
    (tmp_path / "reward_config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="has no 'think'"):
        RewardFacts.read(tmp_path)
