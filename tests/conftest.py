"""Tiny models with random weights, saved as real model folders with a tokenizer and a chat template."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from psutil import Process

from tests.lora_runs import (  # noqa: F401
    at_step,
    changed_lora,
    configure_lora,
    lora_data,
    lora_run,
    survivor,
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TinyModel = Callable[..., Path]

settings.register_profile("patient", deadline=None)  # the machine may have other work
settings.load_profile("patient")


_GROWN = 2**30
_held = 0


@pytest.fixture(autouse=True)
def short_collections() -> Iterator[None]:
    """A run collects garbage three times; what others hold is looked at only where much has come together."""
    global _held
    gc.freeze()
    yield
    gc.collect()
    gc.unfreeze()
    if (held := Process().memory_info().rss) > _held + _GROWN:
        gc.collect()
        _held = held


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Every byte a token, and ChatML's two: 258 tokens in all."""
    return byte_tokenizer()


def byte_tokenizer() -> Any:
    """Every byte a token, and ChatML's two: 258 tokens in all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>", additional_special_tokens=special
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def tiny_config(family: str, **changes: Any) -> Any:
    """A config of two layers and four experts.

    `family` is deepseek_v3, deepseek_v2, glm4_moe, qwen3_moe, mixtral, gpt_oss or llama.
    """
    from transformers import (
        DeepseekV2Config,
        DeepseekV3Config,
        Glm4MoeConfig,
        GptOssConfig,
        LlamaConfig,
        MixtralConfig,
        Qwen3MoeConfig,
    )

    sizes: dict[str, Any] = {
        "vocab_size": 258,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "bos_token_id": 0,
    }
    experts = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
    latent = {"q_lora_rank": None, "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
    groups = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    if family == "deepseek_v3":
        return DeepseekV3Config(**{**sizes, **experts, **latent, **groups, "num_nextn_predict_layers": 0, **changes})
    if family == "deepseek_v2":
        return DeepseekV2Config(**{**sizes, **experts, **latent, **groups, "topk_method": "greedy", **changes})
    if family == "mixtral":
        return MixtralConfig(**{**sizes, "num_local_experts": 4, "num_experts_per_tok": 2, **changes})
    if family == "gpt_oss":
        few = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 32}
        plain_rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
        return GptOssConfig(**{**sizes, **few, **plain_rope, **changes})
    if family == "glm4_moe":
        return Glm4MoeConfig(**{**sizes, **experts, **groups, "head_dim": 16, "num_nextn_predict_layers": 0, **changes})
    if family == "qwen3_moe":
        return Qwen3MoeConfig(**{**sizes, **experts, "num_experts": 4, "head_dim": 16, **changes})
    return LlamaConfig(**{**sizes, "tie_word_embeddings": True, **changes})


def save_tiny(folder: Path, tokenizer: Any, family: str, **changes: Any) -> Path:
    """A model of `tiny_config` with random weights, the same every time, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    for parameter in model.parameters():  # far enough from zero for differences to show
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(tmp_path: Path, tiny_tokenizer: Any) -> TinyModel:
    """tiny_model("qwen3_moe", num_hidden_layers=3) saves such a model and returns its folder."""

    def save(family: str = "deepseek_v3", name: str = "model", **changes: Any) -> Path:
        return save_tiny(tmp_path / name, tiny_tokenizer, family, **changes)

    return save


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny DeepSeek-V3 for all tests that only read it."""
    return save_tiny(tmp_path_factory.mktemp("base") / "model", tiny_tokenizer, "deepseek_v3")


def to_fp8(weight: Any, block: int) -> tuple[Any, Any]:
    """A weight as DeepSeek stores it: float8, and the inverse scale of each block; the last blocks may overhang."""
    import torch

    rows, cols = weight.shape
    scale = torch.empty(-(-rows // block), -(-cols // block))
    stored = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    for i, top in enumerate(range(0, rows, block)):
        for j, left in enumerate(range(0, cols, block)):
            part = weight[top : top + block, left : left + block].float()
            scale[i, j] = part.abs().max() / 448
            stored[top : top + block, left : left + block] = (part / scale[i, j]).to(torch.float8_e4m3fn)
    return stored, scale
