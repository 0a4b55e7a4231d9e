"""Which type each tensor of a GGUF gets: llama.cpp's mixes, and what is taken where rows are too short for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dsr1_tune.models.llama_cpp import ggml
from dsr1_tune.moe.anatomy import Part

SIXTEEN = ("bf16", "f16")
"""Types that the converter writes, and nothing is quantized for."""


@dataclass(frozen=True)
class Mix:
    """A type by llama.cpp's name."""

    number: int
    """Its general.file_type."""
    plain: str
    """What most matrices are in."""
    down: tuple[str, ...]
    """What the last product of a feed-forward network, and the values of attention, are in: layers that matter more,
    then the others."""


MIXES = {
    "q8_0": Mix(7, "Q8_0", ("Q8_0", "Q8_0")),
    "q6_k": Mix(18, "Q6_K", ("Q6_K", "Q6_K")),
    "q5_k_m": Mix(17, "Q5_K", ("Q6_K", "Q5_K")),
    "q4_k_m": Mix(15, "Q4_K", ("Q6_K", "Q4_K")),
    "q3_k_m": Mix(12, "Q3_K", ("Q5_K", "Q4_K")),
}
_SHORT_ROWS = {"Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}

# By the tensor's name without `blk.N.`; everything else is a norm, a bias or a table and stays as it is.
_PARTS: tuple[tuple[str, Part], ...] = (
    (r"ffn_(gate|up|down|gate_up)_exps", "routed_experts"),
    (r"ffn_(gate|up|down|gate_up)_shexp", "shared_experts"),
    (r"ffn_gate_inp(_shexp)?|exp_probs_b", "router"),
    (r"attn_(q|k|v|qkv|output|q_a|q_b|kv_a_mqa|kv_b|k_b|v_b)", "attention"),
    (r"ffn_(gate|up|down)", "dense_ffn"),
    (r"token_embd|output", "embeddings"),
)


def part_of(name: str) -> Part:
    """The part of the model that a GGUF tensor, such as blk.3.ffn_up_exps.weight, belongs to."""
    stem = re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")
    return next((part for pattern, part in _PARTS if re.fullmatch(pattern, stem)), "other")


def pick(name: str, shape: Sequence[int], kind: str, everything: bool, num_layers: int) -> str | None:
    """The type for a tensor of `shape` (rows of `shape[-1]`) in a file of `kind`; None leaves it as it was converted.

    Routed experts get the mix; the other matrices too with `everything`, else 8 bits, which changes next to nothing.
    """
    part = part_of(name)
    if part in ("router", "norms", "other") or len(shape) < 2 or not name.endswith(".weight"):
        return None
    mix = MIXES[kind]
    if part != "routed_experts" and not everything:
        return _fitting("Q8_0", shape[-1])
    if part == "embeddings":
        # Both matter to every token, and llama.cpp keeps the head in at least 6 bits.
        return _fitting("Q8_0" if kind == "q8_0" else "Q6_K", shape[-1])
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    if re.search(r"ffn_down|attn_v\b|attn_v_b", name):
        return _fitting(mix.down[0 if _matters_more(layer, num_layers, kind) else 1], shape[-1])
    return _fitting(mix.plain, shape[-1])


def _matters_more(layer: int, num_layers: int, kind: str) -> bool:
    """llama.cpp's choice: the first and the last eighth, and every third between; for 3 bits the first sixteenth."""
    if kind == "q3_k_m":
        return layer < num_layers // 16
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _fitting(kind: str, columns: int) -> str | None:
    """The type, or the next larger one whose blocks divide a row; None if there is none."""
    if columns % ggml.block(kind):
        kind = _SHORT_ROWS.get(kind, kind)
    return None if columns % ggml.block(kind) else kind
