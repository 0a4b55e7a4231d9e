"""A base too large to load, and what makes a model into one that is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import Adapter, Base
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.models.trained.lora import add_lora

V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "torch_dtype": "bfloat16", "topk_group": 4,
}  # fmt: skip


def with_lora(model: Any) -> Any:
    return add_lora(model, Adapter())


def own(model: Any) -> Any:
    enable_full_training(model, ())
    return model


@pytest.fixture
def v3(tmp_path: Path) -> PlannedBase:
    (tmp_path / "config.json").write_text(json.dumps(V3))
    return describe(Base(model=str(tmp_path)))
