"""A stretched context has YaRN's frequencies, runs at its length, and changes short texts by YaRN's formula alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.context import check_length, with_context
from dsr1_tune.models.load import load, locate

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "llama", "gpt_oss"]
LATENT = ["deepseek_v3", "deepseek_v2"]
ORIGINAL, TOKENS = 64, 512
FACTOR = TOKENS / ORIGINAL


def test_context_of_the_docs_is_more_than_bases_have() -> None:
    """The command in docs/sequences.md runs as it is written."""
    text = (Path(__file__).parents[2] / "docs" / "sequences.md").read_text(encoding="utf-8")
    [(tokens, longest)] = re.findall(r"base\.context=(\d+) --set schedule\.max_tokens=(\d+)", text)
    assert int(longest) <= int(tokens)
    for kind in (Qwen3MoeConfig, MixtralConfig, DeepseekV3Config):
        config = kind(max_position_embeddings=163_840)  # DeepSeek-V3's own
        assert with_context(config, int(tokens)).max_position_embeddings == int(tokens)


@pytest.fixture
def folder_of(tiny_model: Any) -> Any:
    """folder_of("mixtral") is such a model with a context of 64 tokens."""
    return lambda family, **changes: tiny_model(family, family, max_position_embeddings=ORIGINAL, **changes)


def rotary_of(model: Any) -> Any:
    return next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))


def yarn_by_hand(dim: int, theta: float) -> torch.Tensor:
    """Section 3.2 of the paper: slow dimensions are interpolated, fast ones left, those between mixed."""

    def dimension(rotations: float) -> float:
        return dim * math.log(ORIGINAL / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), dim - 1)
    mixed = []
    for pair in range(dim // 2):
        fast = theta ** (-2 * pair / dim)
        share = min(max((pair - low) / max(high - low, 1e-3), 0), 1)
        mixed.append(fast * (1 - share) + fast / FACTOR * share)
    return torch.tensor(mixed)


@pytest.mark.parametrize("family", FAMILIES)
def test_stretched_frequencies_are_yarns(folder_of: Any, family: str) -> None:
    model = load(Base(model=str(folder_of(family)), context=TOKENS)).model
    rotary, config = rotary_of(model), model.config
    expected, scaling = ROPE_INIT_FUNCTIONS["yarn"](config)
    torch.testing.assert_close(rotary.inv_freq, expected)
    assert rotary.attention_scaling == scaling
    torch.testing.assert_close(rotary.inv_freq, yarn_by_hand(16, config.rope_parameters["rope_theta"]))
    assert config.max_position_embeddings == TOKENS
    mscale = 0.1 * math.log(FACTOR) + 1
    if family in LATENT:  # at the softmax, where the unrotated part is scaled too
        assert scaling == 1.0
        attention = model.model.layers[0].self_attn
        assert attention.scaling == pytest.approx(32**-0.5 * mscale**2)
    else:
        assert scaling == pytest.approx(mscale)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_stretched_context_runs_at_its_length(folder_of: Any, family: str) -> None:
    """Its last token still sees the first, and the beginning of a text is read alike however long the text is."""
    model = load(Base(model=str(folder_of(family)), context=TOKENS)).model
    assert model.config.max_position_embeddings == TOKENS
    ids = torch.randint(2, 258, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=ids, use_cache=False).logits
    assert logits.shape == (1, TOKENS, 258) and torch.isfinite(logits).all()
    alone = model(input_ids=ids[:, :ORIGINAL], use_cache=False).logits
    torch.testing.assert_close(logits[:, :ORIGINAL], alone, rtol=1e-3, atol=1e-3)
    unstretched = load(Base(model=str(folder_of(family)))).model(input_ids=ids[:, :ORIGINAL], use_cache=False).logits
    assert not torch.allclose(alone, unstretched, rtol=1e-3, atol=1e-3)
    ids[0, 0] = (ids[0, 0] + 1) % 258
    assert not torch.equal(model(input_ids=ids, use_cache=False).logits[:, -1], logits[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_stretched_context_reads_a_lone_token_as_before(folder_of: Any, family: str) -> None:
    """Position 0 is not rotated at all, and with one key the softmax is 1 whatever the scores' scale."""
    if family == "gpt_oss":
        pytest.skip("its attention sinks take part in the softmax")
    folder = str(folder_of(family))
    ids = torch.tensor([[7]])
    with torch.no_grad():
        before, after = (load(Base(model=folder, context=n)).model(input_ids=ids).logits for n in (0, TOKENS))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_stretched_a_little_changes_short_texts_little(folder_of: Any, family: str) -> None:
    """The smaller the factor, the nearer to the base; in the limit it is the base."""
    folder = str(folder_of(family))
    ids = torch.randint(2, 258, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, least, little, much = (
            load(Base(model=folder, context=n)).model(input_ids=ids).logits for n in (0, ORIGINAL + 1, 80, 2048)
        )
    differences = [float((after - before).norm() / before.norm()) for after in (least, little, much)]
    assert 0 < differences[0] < differences[1] < differences[2]
    assert differences[0] < 0.3 * differences[2]


def test_a_stretched_base_is_stretched_from_its_original_context(folder_of: Any) -> None:
    """As DeepSeek-V3 comes: YaRN with its own mscale and beta."""
    own = {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.707, "mscale_all_dim": 0.707, "rope_theta": 5000.0}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **own}
    config = AutoConfig.from_pretrained(folder_of("deepseek_v3", rope_parameters=yarn))
    stretched = with_context(config, TOKENS)
    assert stretched.rope_parameters == {**yarn, "factor": TOKENS / 16}
    assert config.rope_parameters["factor"] == 4.0  # the given one is left alone
    assert config.max_position_embeddings == ORIGINAL


@pytest.mark.parametrize(("before", "kept"), [(1.0, True), (0.1 * math.log(4) + 1, False)])
def test_an_attention_factor_that_follows_from_the_old_factor_is_reckoned_anew(before: float, kept: bool) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
    config = LlamaConfig(max_position_embeddings=64, rope_parameters={**rope, "attention_factor": before})
    assert ("attention_factor" in with_context(config, TOKENS).rope_parameters) == kept


def test_stretched_partly_rotated_heads_stay_so() -> None:
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    config = Glm4MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, first_k_dense_replace=1, max_position_embeddings=ORIGINAL,
    )  # fmt: skip
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    model = Glm4MoeForCausalLM(with_context(config, TOKENS))
    assert len(rotary_of(model).inv_freq) == 4
    torch.testing.assert_close(rotary_of(model).inv_freq, yarn_by_hand(8, config.rope_parameters["rope_theta"]))


# --- left alone, or refused ------------------------------------------------------------------------------------------


def test_with_context_leaves_the_config_where_nothing_is_to_do() -> None:
    config = LlamaConfig(max_position_embeddings=ORIGINAL)
    assert with_context(config, 0) is config
    assert with_context(config, ORIGINAL) is config


def test_with_context_refuses_a_base_with_a_longer_context() -> None:
    with pytest.raises(ModelError, match="its context is 64 tokens already") as error:
        with_context(LlamaConfig(max_position_embeddings=ORIGINAL), 32, "org/base")
    assert "org/base" in error.value.message
    assert "base.context" in error.value.hint


FACTORS = [1.0] * 8
ROPES = [
    ("longrope", {"rope_type": "longrope", "short_factor": FACTORS, "long_factor": FACTORS, "factor": 1.0}),
    ("linear", {"rope_type": "linear", "factor": 2.0}),
    ("dynamic", {"rope_type": "dynamic", "factor": 2.0}),
    (
        "Llama 3",
        {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
]


@pytest.mark.parametrize(("reason", "rope"), ROPES)
def test_with_context_refuses_ropes_that_yarn_cannot_stretch(folder_of: Any, reason: str, rope: dict[str, Any]) -> None:
    folder = folder_of("llama", rope_parameters={"rope_theta": 1e4, **rope})
    with pytest.raises(ModelError, match=reason) as error:
        locate(Base(model=str(folder), context=TOKENS))
    assert "cannot be stretched" in error.value.message
    assert "64" in error.value.hint
    locate(Base(model=str(folder)))


def test_with_context_refuses_bases_without_rope_or_with_several() -> None:
    from transformers import Gemma3TextConfig, GPT2Config

    with pytest.raises(ModelError, match="no rotary embedding"):
        with_context(GPT2Config(n_positions=ORIGINAL), TOKENS)
    with pytest.raises(ModelError, match="several kinds"):
        with_context(Gemma3TextConfig(max_position_embeddings=ORIGINAL), TOKENS)


def test_check_length_refuses_texts_longer_than_the_context() -> None:
    config = LlamaConfig(max_position_embeddings=ORIGINAL)
    check_length(config, ORIGINAL)
    with pytest.raises(ModelError, match="65 tokens is longer than its context of 64") as error:
        check_length(config, 65, "org/base")
    assert "base.context=65" in error.value.hint
    check_length(with_context(config, 65), 65)


# --- loaded again ----------------------------------------------------------------------------------------------------


def test_stretched_model_needs_no_setting_once_saved(folder_of: Any, tmp_path: Path) -> None:
    model = load(Base(model=str(folder_of("deepseek_v3")), context=TOKENS)).model
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(rotary_of(again).inv_freq, rotary_of(model).inv_freq)
    assert again.config.max_position_embeddings == TOKENS
