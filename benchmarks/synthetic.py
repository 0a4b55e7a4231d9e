"""Synthetic DeepSeek-V3-shaped checkpoints of any size, written shard by shard, in bfloat16 or block-FP8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

BLOCK = 128
_STORED = 50_000_000


def write_checkpoint(
    folder: Path, num_layers: int, num_experts: int = 64, width: int = 1024, inner: int = 512, fp8: bool = False
) -> int:
    """A checkpoint with random weights as DeepSeek lays them out on disk, a shard a layer; returns its bytes."""
    from transformers import DeepseekV3Config

    folder.mkdir(parents=True)
    config = DeepseekV3Config(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=2 * width,
        moe_intermediate_size=inner,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        n_routed_experts=num_experts,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=256,
        max_position_embeddings=1024,
    )
    config.architectures = ["DeepseekV3ForCausalLM"]
    tree: dict[str, Any] = config.to_dict()
    if fp8:
        tree["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps(tree, default=str))
    numbers = _Numbers(fp8)
    shards = {"model.safetensors": {**_ends(config, numbers)}}
    weight_map: dict[str, str] = {}
    for layer in range(-1, num_layers):
        tensors = shards["model.safetensors"] if layer < 0 else _layer(config, layer, numbers)
        file = f"model-{layer + 2:05}-of-{num_layers + 1:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class _Numbers:
    """Weights cut from one store of random numbers: drawing billions afresh would take minutes."""

    def __init__(self, fp8: bool) -> None:
        self._fp8 = fp8
        self._store = torch.randn(_STORED, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
        self._at = 0

    def plain(self, *shape: int) -> Tensor:
        num = torch.Size(shape).numel()
        self._at = (self._at + 9973) % (self._store.numel() - num)
        return self._store[self._at : self._at + num].view(*shape).clone()

    def linear(self, name: str, rows: int, cols: int) -> dict[str, Tensor]:
        weight = self.plain(rows, cols)
        if not self._fp8:
            return {name: weight}
        scale = torch.full((-(-rows // BLOCK), -(-cols // BLOCK)), 0.1 / 448)
        return {name: (weight.float() / scale[0, 0]).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}


def _ends(config: Any, numbers: _Numbers) -> dict[str, Tensor]:
    embedding = (config.vocab_size, config.hidden_size)
    return {
        "model.embed_tokens.weight": numbers.plain(*embedding),
        "lm_head.weight": numbers.plain(*embedding),
        "model.norm.weight": torch.ones(config.hidden_size, dtype=torch.bfloat16),
    }


def _layer(config: Any, layer: int, numbers: _Numbers) -> dict[str, Tensor]:
    at, width, heads = f"model.layers.{layer}.", config.hidden_size, config.num_attention_heads
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    tensors = {
        f"{at}{norm}.weight": torch.ones(width, dtype=torch.bfloat16)
        for norm in ("input_layernorm", "post_attention_layernorm")
    }
    tensors[f"{at}self_attn.kv_a_layernorm.weight"] = torch.ones(latent, dtype=torch.bfloat16)
    for name, rows, cols in (
        ("q_proj", heads * (nope + rope), width),
        ("kv_a_proj_with_mqa", latent + rope, width),
        ("kv_b_proj", heads * (nope + value), latent),
        ("o_proj", width, heads * value),
    ):
        tensors |= numbers.linear(f"{at}self_attn.{name}.weight", rows, cols)
    if layer < config.first_k_dense_replace:
        return tensors | _ffn(f"{at}mlp", config.intermediate_size, width, numbers)
    tensors[f"{at}mlp.gate.weight"] = numbers.plain(config.n_routed_experts, width)
    tensors[f"{at}mlp.gate.e_score_correction_bias"] = torch.zeros(config.n_routed_experts)
    for place in ("shared_experts", *(f"experts.{expert}" for expert in range(config.n_routed_experts))):
        tensors |= _ffn(f"{at}mlp.{place}", config.moe_intermediate_size, width, numbers)
    return tensors


def _ffn(at: str, inner: int, width: int, numbers: _Numbers) -> dict[str, Tensor]:
    up = numbers.linear(f"{at}.gate_proj.weight", inner, width) | numbers.linear(f"{at}.up_proj.weight", inner, width)
    return up | numbers.linear(f"{at}.down_proj.weight", width, inner)
