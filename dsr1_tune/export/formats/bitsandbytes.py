"""A model folder in bitsandbytes' layout, NF4 or int8, written from any source one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.accounting import Counting, Quantized, check_all, chosen, skipped_modules
from dsr1_tune.export.weights.progress import counted
from dsr1_tune.export.weights.source import Source, copy_sidecars
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.bnb_layout import Kind
from dsr1_tune.models.weights.checkpoint import write_weights
from dsr1_tune.models.weights.converted import Converted
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.models.weights.load_bnb import OURS, is_plain
from dsr1_tune.moe.expert_lora import is_known_layout
from dsr1_tune.runs.console import Narrator


def write(
    source: Source,
    folder: Path,
    settings: Quantize,
    narrator: Narrator,
    *,
    kind: Kind,
    config: dict[str, Any],
    fits: Callable[[int, int], bool],
) -> Quantized:
    """See `nf4.write` and `int8.write`; `fits(rows, cols)` says which matrices can be quantized at all."""
    wanted = chosen(source.layout, settings.all)
    names = frozenset(name for name in wanted if _can_be_held(source, name, fits))
    experts = {name for name in wanted if source.layout.part(name) == "routed_experts"}
    if left := sorted(experts - names):
        shape = " × ".join(map(str, source.weights.spec(left[0]).shape))
        raise ModelError(
            f"{source.name}: its experts cannot be held in {kind}, such as {left[0]} ({shape})",
            hint="choose another format: --to w4a16, fp8 or gguf",
        )
    counting = Counting(source.layout)

    def make(name: str, weight: Tensor) -> dict[str, Tensor]:
        parts, error = bnb_layout.quantize(kind, name, weight)
        size = float(weight.float().norm())
        counting.add(name, weight.numel(), sum(part.nbytes for part in parts.values()), error * size, size)
        return parts

    weights = Converted(source.weights, names, lambda name, spec: bnb_layout.specs(kind, name, spec), make)
    with counted(narrator, weights) as advance:
        write_weights(weights, folder, advance)
    check_all(names, counting.names)
    groups = counting.groups()
    stored_as = {
        "quant_method": "bitsandbytes",
        **config,
        "llm_int8_skip_modules": skipped_modules(source, names),
        OURS: {"worst_error": {group.part: group.worst_error for group in groups if group.num_quantized}},
    }
    copy_sidecars(source, folder, {**source.config, "quantization_config": stored_as})
    return Quantized(groups, {"left": sorted(wanted - names)[:20]} if wanted - names else {})


def _can_be_held(source: Source, name: str, fits: Callable[[int, int], bool]) -> bool:
    """Whether our loader has a module that holds this matrix as it is stored."""
    layout: Layout = source.layout
    piece = layout.pieces[name]
    owner, _, leaf = piece.parameter.rpartition(".")
    module = source.meta_model.get_submodule(owner)
    shape = source.weights.spec(name).shape
    if not is_plain(piece) or not fits(*shape[-2:]):
        return False
    if layout.part(name) == "routed_experts":
        return is_known_layout(module)
    # Subclasses of nn.Linear have a forward of their own.
    return type(module) is nn.Linear and leaf == "weight" and tuple(shape) == layout.shapes[piece.parameter]
