"""Folders in bitsandbytes' layout loaded as they are: NF4 and int8 stay what they are, experts among them.

Each stored tensor goes to its place in the buffers of quant.nf4 and quant.int8: `experts.7.up_proj.weight` is a part
of `gate_up_proj`'s. Everything else goes through transformers' loader, one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from dsr1_tune.errors import ModelError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.bnb_layout import Kind
from dsr1_tune.models.weights.checkpoint import DTYPES, NAMES, Checkpoint, Spec
from dsr1_tune.models.weights.converted import LazyTensor
from dsr1_tune.models.weights.index import COPY_AGAIN
from dsr1_tune.models.weights.layout import Layout, Piece
from dsr1_tune.models.weights.shard import OwnPart
from dsr1_tune.models.weights.stored_format import StoredFormat
from dsr1_tune.moe.llama4 import adopt
from dsr1_tune.moe.quantized_experts import finish_nf4
from dsr1_tune.quant import int8, nf4

PREQUANTIZED = "dsr1_held"
OURS = "dsr1_tune"
"""The key in a `quantization_config` under which we note what bitsandbytes has no place for."""


@register_quantization_config(PREQUANTIZED)
@dataclass
class PrequantizedConfig(QuantizationConfigMixin):
    """Which parameters come in NF4 or int8."""

    kind: str = "nf4"
    parts: Mapping[str, int] = field(default_factory=dict)
    """By the parameter's name, in how many parts a matrix was quantized."""
    quant_method: str = PREQUANTIZED


@register_quantizer(PREQUANTIZED)
class PrequantizedQuantizer(HfQuantizer):
    """transformers' steps around the loading of weights, for those that are quantized already."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **more: Any) -> None:
        adopt(model)
        for name, num_parts in self.quantization_config.parts.items():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            shape = tuple(getattr(module, leaf).shape)
            nf4.put_placeholder(module, leaf)
            nf4.reserve_as(module, leaf, _sizes(self.quantization_config.kind, shape, num_parts))
            linear = nf4.Nf4Linear if self.quantization_config.kind == "nf4" else nf4.Int8Linear
            module.__class__ = linear if isinstance(module, nn.Linear) else nf4.holding(module.__class__)

    def _process_model_after_weight_loading(self, model: Any, **more: Any) -> None:
        finish_nf4(model, self.quantization_config.kind)

    def is_serializable(self) -> bool:
        """`save_pretrained` would leave another layout: what there is to save is in a folder already."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained over it."""
        return bool(self.quantization_config.kind == "nf4")


def _sizes(kind: str, shape: tuple[int, ...], num_parts: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    num_matrices = shape[0] if len(shape) == 3 else 1
    rows, cols = shape[-2:]
    if kind == "int8":
        return int8.sizes(num_matrices, rows, cols)
    return nf4.sizes(num_matrices * num_parts, rows // num_parts, cols)


def open_prequantized(
    folder: Path, config: Any, name: str, own: OwnPart | None = None
) -> tuple[PrequantizedConfig, dict[str, LazyTensor]]:
    """How to hold the weights of a folder in bitsandbytes' layout, and its tensors by the names they are loaded under.

    `own` is the part of it that a process with some of the experts alone reads.
    Raises ModelError, naming the tensor, for a layout that is another than `bnb_layout`'s.
    """
    stored_as: dict[str, Any] = config.quantization_config
    kind: Kind = "int8" if StoredFormat.of(config) is StoredFormat.BNB_INT8 else "nf4"
    plain = deepcopy(config)
    del plain.quantization_config
    checkpoint = own.checkpoint if own else Checkpoint(folder)
    quantized = bnb_layout.find(kind, checkpoint.names)
    inside = {part for parts in quantized.values() for part in parts}
    rest = [stored for stored in checkpoint.names if stored not in inside]
    layout = own.layout if own else Layout.of(meta_model(plain), [*rest, *quantized])
    tensors = {stored: LazyTensor.as_stored(checkpoint, stored) for stored in rest}
    worst = max((stored_as.get(OURS) or {}).get("worst_error", {}).values(), default=0.0)
    parts: dict[str, int] = {}
    for parameter in sorted({layout.pieces[stored].parameter for stored in quantized if stored in layout.pieces}):
        pieces = layout.pieces_of(parameter)
        parts[parameter] = _num_parts(pieces, layout.shapes[parameter], quantized, name)
        sizes = _sizes(kind, layout.shapes[parameter], parts[parameter])
        for part, (shape, dtype) in sizes.items():
            is_fused = len(layout.shapes[parameter]) == 3 and pieces[0].expert is None
            spec = Spec(NAMES[dtype], shape)
            read: Callable[[], Tensor] = partial(torch.full, shape, worst)
            if part != "error" or is_fused:  # what the error was is not stored for each matrix
                read = _buffer(checkpoint, kind, part, pieces, spec, is_fused)
            tensors[f"{parameter}_{part}"] = LazyTensor(spec, read)
    return PrequantizedConfig(kind=kind, parts=parts), tensors


def _num_parts(
    pieces: Sequence[Piece], shape: tuple[int, ...], quantized: Mapping[str, tuple[str, ...]], name: str
) -> int:
    """In how many parts each matrix of a parameter is stored. Raises ModelError where they do not make up a whole."""
    if left := [piece.stored for piece in pieces if piece.stored not in quantized]:
        raise ModelError(f"{name}: {left[0]} is not quantized, but its neighbours are", hint=COPY_AGAIN)
    one = pieces[0]
    num_parts = one.rows[2] if one.rows else 1
    num_matrices = shape[0] if one.expert is not None else 1  # all experts may be one tensor
    if not all(is_plain(piece) for piece in pieces):
        raise ModelError(
            f"{name}: {one.stored} is stored with its rows or columns in another order than the model has them",
            hint="export the model again with --to w4a16 or gguf",
        )
    if len(pieces) != num_matrices * num_parts:
        raise ModelError(f"{name}: {len(pieces)} of {num_matrices * num_parts} parts of {one.parameter} are stored",
                         hint=COPY_AGAIN)  # fmt: skip
    return num_parts


def is_plain(piece: Piece) -> bool:
    """Whether a stored tensor is a run of whole rows of its parameter, so that its blocks stay blocks there."""
    return not (piece.is_transposed or piece.is_alternating) and (piece.rows is None or piece.rows[1] == 1)


def _buffer(
    checkpoint: Checkpoint, kind: Kind, part: str, pieces: Sequence[Piece], spec: Spec, is_fused: bool
) -> Callable[[], Tensor]:
    """What reads one buffer of a module, put together of what is stored for each part of the weight.

    Raises ModelError if a tensor is of another size than the model says; nothing is read yet.
    """
    # Expert by expert, and in each from its first rows to its last.
    in_order = sorted(pieces, key=lambda piece: (piece.expert or 0, piece.rows or (0, 1, 1)))
    names = [bnb_layout.part_name(kind, piece.stored, part, is_fused) for piece in in_order]
    is_state = part == "offset" and not is_fused
    wanted = spec.num_elements // len(names)
    for name in () if is_state else names:
        found = checkpoint.spec(name)
        if found.num_elements != wanted or found.dtype != spec.dtype:
            number = str(DTYPES[spec.dtype]).removeprefix("torch.")
            raise ModelError(
                f"{name}: holds {found.num_elements} numbers as {found.dtype}, in place of {wanted} as {number}",
                hint=COPY_AGAIN,
            )

    def read() -> Tensor:
        out = torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
        for row, name, piece in zip(out.view(len(names), -1), names, in_order, strict=True):
            stored = checkpoint.read(name)
            row.copy_(_offset(stored, piece) if is_state else stored.reshape(-1))
        return out

    return read


def _offset(stored: Tensor, piece: Piece) -> Tensor:
    try:
        return torch.tensor(bnb_layout.read_state(stored)["offset"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{piece.stored}: its quant_state cannot be used: {error}", hint=COPY_AGAIN) from error
