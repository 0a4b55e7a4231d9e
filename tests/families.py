"""A tiny model of every family of mixtures that transformers knows, with random weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# What a config of any family says of its size: a tiny model's number for each field that the family has.
_SIZES: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "model_max_length": 512,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    # attention
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "sliding_window": 32,
    "index_topk": 64,
    "index_head_dim": 32,
    "index_n_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 64,
    "shared_experts_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "num_nextn_predict_layers": 0,
    "norm_topk_prob": True,
}
_KINDS_OF_LAYERS = ("layer_types", "mlp_layer_types", "layers_block_type")
# What one family says otherwise.
_OWN: dict[str, dict[str, Any]] = {
    "dbrx": {
        "d_model": 64,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "head_dim": 64,
        "o_groups": 2,
        "o_lora_rank": 64,
        "hc_mult": 2,
        "partial_rotary_factor": 0.25,
    },
    "doge": {"is_moe": True},
    "dots3_note_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
            for kind in ("indexed_attention", "sliding_attention")
        },
        "per_layer_config": {1: {"qk_nope_head_dim": 32, "head_dim": 48}},
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": {
        "enable_moe_block": True,
        "vocab_size_per_layer_input": 258,
        "hidden_size_per_layer_input": 0,
        "per_layer_config": {1: {"head_dim": 32}},
    },
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_n_heads": 4,
        "mamba_d_state": 16,
        "mamba_d_head": 32,
        "mamba_chunk_size": 16,
    },
    "inkling_text": {"d_rel": 8, "rel_extent": 64, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4}
    | {"swa_head_dim": 16, "sliding_window_size": 32, "unpadded_vocab_size": 258},
    "inkling2_text": {"d_rel": 8, "rel_extent": 64, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4}
    | {"swa_head_dim": 16, "sliding_window_size": 32, "unpadded_vocab_size": 258}
    | {"n_layers_per_attn_res_block": 2, "log_scaling_n_floor": 512},
    "inkling2_loop_text": {"d_rel": 8, "rel_extent": 64, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4}
    | {"swa_head_dim": 16, "sliding_window_size": 32, "unpadded_vocab_size": 258}
    | {"n_layers_per_attn_res_block": 1, "log_scaling_n_floor": 512, "num_hidden_layers": 3, "loop_gate_rank": 16}
    | {"layer_types": ["hybrid_sliding", "hybrid", "hybrid"], "loop_layer_index_start": 1, "loop_layer_index_end": 2}
    | {"loop_num_passes": 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    | {"mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 16},
    "kimi_linear": {"q_lora_rank": None},
    "laguna": {
        "num_attention_heads_per_layer": [4, 4],
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"intermediate_size_mlp": 128, "num_experts_per_tok": 1, "moe_layers": [1]},
    "longcat_flash": {
        "num_layers": 1,
        "ffn_hidden_size": 128,
        "expert_ffn_hidden_size": 64,
        "zero_expert_num": 2,
    },
    "mellum": {"layer_types": ["full_attention", "sliding_attention"]},
    "mimo_v2_flash": {
        "num_key_value_heads": 2,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}
            for kind, theta in (("full_attention", 5e6), ("sliding_attention", 1e4))
        },
    },
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
        "ssm_state_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
        "chunk_size": 16,
        "use_mamba_kernels": False,
    },
    "olmoe": {"norm_topk_prob": False},  # as it is published; llama.cpp takes it for granted
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 512,
        "indexer_compress_ratio": 4,
        "hc_count": 2,
        "hc_lowrank": 16,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 32},
}

# What a vision tower's config says of its size.
_TOWER = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 4}
_TOWER |= {"num_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "out_hidden_size": 64, "global_head_dim": 16}
_TOWER |= {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}
WRAPPED = {
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Families whose checkpoints hold a text model beside a tower for pictures, and the text model's family."""


def names() -> list[str]:
    """The families of mixtures that transformers can load as a causal language model, and those of `WRAPPED`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(
        name
        for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        if name in CONFIG_MAPPING and (name in WRAPPED or _is_mixture(CONFIG_MAPPING[name]))
    )


def _is_mixture(kind: type) -> bool:
    fields = set(getattr(kind, "__dataclass_fields__", {})) | set(vars(kind))
    return "text_config" not in fields and any(re.search(r"expert|(^|_)moe_|ffn_config", field) for field in fields)


def config_of(name: str, **changes: Any) -> Any:
    """A config of two layers and four experts of the family `name`, or of as few as show each kind of its layers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    usual = kind().to_dict()
    own = _OWN.get(name, {})
    sizes = {field: size for field, size in _SIZES.items() if field in usual}
    for field in _KINDS_OF_LAYERS:
        if usual.get(field):
            kinds = list(dict.fromkeys(usual[field]))
            sizes[field] = kinds if len(kinds) > 1 else kinds * 2
            if len(kinds) > _SIZES["num_hidden_layers"]:
                sizes["num_hidden_layers"] = len(kinds)
    return kind(**sizes | own | changes)


def _wrapped(name: str) -> Any:
    """A config of text and pictures."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = CONFIG_MAPPING[name]
    tower = kind.sub_configs["vision_config"]
    sizes = {field: size for field, size in _TOWER.items() if field in tower().to_dict()}
    if name == "llama4":
        sizes |= {"image_size": 28, "patch_size": 14}
    config = kind(text_config=config_of(WRAPPED[name]).to_dict(), vision_config=tower(**sizes).to_dict())
    config.eos_token_id, config.pad_token_id, config.bos_token_id = 1, 1, 0
    return config


def save_family(folder: Path, tokenizer: Any, name: str, **changes: Any) -> Path:
    """A tiny model of a family with random weights, the same every time, and its tokenizer.

    Those of `WRAPPED` are whole, with a tower for pictures, as they are published.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    if name in WRAPPED:
        model = AutoModelForImageTextToText.from_config(_wrapped(name))
    else:
        model = AutoModelForCausalLM.from_config(config_of(name, **changes))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # far enough from zero for differences to show
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
