"""NF4 (arXiv 2305.14314) and int8 by rows (LLM.int8, arXiv 2208.07339) in bitsandbytes' layout, experts included.

Both are for this package's loader, which holds them as they are stored. In int8 it rounds the weights alone;
activations stay in the model's own number format.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.formats.encoding import Encoding, write_encoded
from dsr1_tune.export.formats.format import Format
from dsr1_tune.export.weights.accounting import Group, Quantized, chosen
from dsr1_tune.models.weights.checkpoint import Spec
from dsr1_tune.models.weights.stored_format import StoredFormat

if TYPE_CHECKING:
    from dsr1_tune.export.weights.source import Source
    from dsr1_tune.models.weights.bnb_layout import Kind
    from dsr1_tune.models.weights.layout import Piece
    from dsr1_tune.runs.console import Narrator


def write(kind: Kind, source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the source's weights, config and tokenizer to `folder`: its matrices in NF4 with doubly quantized scales,
    or in int8 with a scale for each row.

    Experts whose rows are stored in another order than the model has them are written in the model's, under its name.

    Raises ModelError for experts that cannot be held so, as those that do not divide into NF4's blocks of 64 weights.
    """
    from dsr1_tune.export.weights.as_loaded import check_as_loaded
    from dsr1_tune.models.weights import bnb_layout
    from dsr1_tune.models.weights.load_bnb import OURS

    wanted = chosen(source.layout, settings.all)
    names = frozenset(name for name in wanted if _can_be_held(kind, source, name))
    experts = {name for name in wanted if source.layout.part(name) == "routed_experts"}
    if left := sorted(experts - names):
        shape = " × ".join(map(str, source.weights.spec(left[0]).shape))
        raise ModelError(
            f"{source.name}: its experts cannot be held in {kind}, such as {left[0]} ({shape})",
            hint="choose another format: --to w4a16, fp8 or gguf",
        )

    def specs(name: str, spec: Spec) -> dict[str, Spec]:
        piece = source.layout.pieces[name]
        if _is_rearranged(piece):
            return bnb_layout.specs(kind, piece.parameter, Spec(spec.dtype, source.layout.shapes[piece.parameter]))
        return bnb_layout.specs(kind, name, spec)

    def encode(name: str, weight: Tensor) -> tuple[dict[str, Tensor], float]:
        piece = source.layout.pieces[name]
        if _is_rearranged(piece):
            stored, weight = weight, weight.new_empty(source.layout.shapes[piece.parameter])
            piece.put(stored, weight)
            name = piece.parameter
        parts, relative = bnb_layout.quantize(kind, name, weight)
        return parts, relative * float(weight.float().norm())

    def config(skipped: list[str], groups: tuple[Group, ...]) -> dict[str, Any]:
        worst = {group.part: group.worst_error for group in groups if group.num_quantized}
        common = {"llm_int8_skip_modules": skipped, OURS: {"worst_error": worst}}
        return {"quant_method": "bitsandbytes", **_CONFIGS[kind], **common}

    facts = {"left": sorted(wanted - names)[:20]} if wanted - names else {}
    written = write_encoded(Encoding(names, specs, encode, config), source, folder, narrator)
    narrator.stage("Compare what is loaded with what was written")
    found = check_as_loaded(source, folder, kind)
    narrator.say(
        "It is too large in float32 for this memory: logits were not compared."
        if found["max_difference"] is None
        else f"On {found['num_tokens']} tokens the logits are those of its weights multiplied out, to "
        f"{found['max_difference']:.1e} (bound {found['bound']:.1e})."
    )
    return Quantized(written.groups, {**facts, "as_loaded": found})


_CONFIGS: dict[Kind, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {
        "load_in_4bit": False,
        "load_in_8bit": True,
        "llm_int8_threshold": 0.0,
        "llm_int8_has_fp16_weight": False,
    },
}


def _can_be_held(kind: Kind, source: Source, name: str) -> bool:
    """Whether this package's loader has a module that holds this matrix as it is stored."""
    from dsr1_tune.models.weights.load_bnb import is_plain
    from dsr1_tune.moe.expert_lora import is_known_layout
    from dsr1_tune.quant import nf4

    layout = source.layout
    piece = layout.pieces[name]
    owner, _, leaf = piece.parameter.rpartition(".")
    module = source.meta_model.get_submodule(owner)
    shape = source.layout.shapes[piece.parameter] if _is_rearranged(piece) else source.weights.spec(name).shape
    if not (is_plain(piece) or _is_rearranged(piece)) or (kind == "nf4" and not nf4.fits(*shape[-2:])):
        return False
    if layout.part(name) == "routed_experts":
        return is_known_layout(module)
    # Subclasses of nn.Linear have a forward of their own.
    return type(module) is nn.Linear and leaf == "weight" and tuple(shape) == layout.shapes[piece.parameter]


def _is_rearranged(piece: Piece) -> bool:
    """Whether a stored tensor is all of a parameter, but its rows or columns are in another order there."""
    from dsr1_tune.models.weights.load_bnb import is_plain

    return piece.expert is None and piece.rows is None and piece.span is None and not is_plain(piece)


_REFUSED = {
    "vllm": "it has bitsandbytes only in a plugin, and that has no place for quantized experts",
    "sglang": "its bitsandbytes covers linear layers, and has no place for quantized experts",
    "transformers": "by itself it has no place for quantized experts (loading fails in NF4, the forward pass in int8)",
}
NF4 = Format(
    name="nf4",
    bits=4.13,
    write=partial(write, "nf4"),
    is_stored_as=lambda stored: StoredFormat.of({"quantization_config": stored}) is StoredFormat.BNB_NF4,
    refused_by=_REFUSED,
    next_step="It is for dsr1-tune, which holds it in 4 bits; transformers alone refuses experts in this layout.\n"
    "Talk to it with: dsr1-tune chat {folder}",
    gentler=lambda settings: ("--to int8", "--to gguf --set quantize.gguf=q8_0"),
)
INT8 = Format(
    name="int8",
    bits=8.0,
    write=partial(write, "int8"),
    is_stored_as=lambda stored: StoredFormat.of({"quantization_config": stored}) is StoredFormat.BNB_INT8,
    refused_by=_REFUSED,
    next_step="It is for dsr1-tune, which holds it in 8 bits; transformers alone fails on experts in this layout.\n"
    "Talk to it with: dsr1-tune chat {folder}",
    gentler=lambda settings: ("--to gguf --set quantize.gguf=q8_0",),
)
