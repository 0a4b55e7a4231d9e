"""W4A16 written one matrix at a time, each weight rounded to the nearest or as a calibrated library rounded it.

Letters: N rows, the outputs; K columns, the inputs; G groups of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.accounting import Counting, Quantized, check_all, chosen
from dsr1_tune.export.weights.progress import counted, names_of
from dsr1_tune.export.weights.sidecars import copy_sidecars
from dsr1_tune.export.weights.source import Source
from dsr1_tune.models.memory import give_back
from dsr1_tune.models.weights.checkpoint import DTYPES, Spec, Stored, Weights, write_weights
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.quant.w4a16 import HIGHEST, LOWEST, PACKED, SCALE, SHAPE, dequantize, pack, quantization_config
from dsr1_tune.runs.console import Narrator

Rounded = tuple[Tensor, Tensor]
"""Integers (N, K) int8, and the scales (N, G)."""
GROUP_SIZES = (128, 64, 32)
_WEIGHT = ".weight"
_GIVE_BACK = 32 << 20
_MAX_WEIGHTS = 1 << 20  # that are worked on at a time: what is needed beside the matrix stays small


def write_rounded(
    source: Source,
    folder: Path,
    settings: Quantize,
    group_size: int,
    narrator: Narrator,
    rounded: Callable[[str, Tensor, Counting], Rounded] | None = None,
) -> Quantized:
    """Write the chosen matrices as `rounded` rounds them, by default each weight to the nearest, and copy the rest.

    `rounded(name, weight, counting)` returns the integers and scales of the matrix stored as `name`.
    """
    names = chosen(source.layout, settings.all)
    counting = Counting(source.layout)
    packed = Packed(source.weights, names, group_size, counting, rounded)
    with counted(narrator, packed, "writing, MiB") as advance:
        write_weights(packed, folder, advance)
    check_all(names, counting.names)
    stored_as = quantization_config(group_size, not_quantized(source.weights, source.layout, names))
    copy_sidecars(source, folder, {**source.config, "quantization_config": stored_as}, narrator.say)
    return Quantized(counting.groups(), {"format": "compressed-tensors pack-quantized", "group_size": group_size})


def pick_group_size(source: Source, names: frozenset[str], wanted: int) -> int:
    """The wanted group size, or the largest that divides the columns of every chosen matrix."""
    if not names:
        raise ModelError(
            f"{source.name}: has no routed experts to quantize", hint="give --all to quantize all its layers"
        )
    columns: dict[int, str] = {}
    for name in sorted(names):
        columns.setdefault(source.weights.spec(name).shape[1], name)
    for size in (wanted,) if wanted else GROUP_SIZES:
        uneven = next((count for count in columns if count % size), None)
        if uneven is None:
            return size
    fits = [size for size in GROUP_SIZES if not any(count % size for count in columns)]
    other = "choose --to nf4, int8 or gguf, or leave out --all"
    raise ModelError(
        f"{source.name}: {columns[uneven or 0]} has {uneven} columns, which groups of {size} do not divide",
        hint=f"--set quantize.group_size={fits[0]} does" if fits else other,
    )


def not_quantized(weights: Weights, layout: Layout, names: frozenset[str]) -> set[str]:
    """The modules whose weight stays in 16 bits, under their names on disk and under those in transformers' model.

    Engines take every linear layer that is not listed for quantized: the router, the output head and the further
    prediction layers as well.
    """
    left = set()
    for name in names_of(weights):
        if name not in names and name.endswith(_WEIGHT) and len(weights.spec(name).shape) == 2:
            left.add(name.removesuffix(_WEIGHT))
            piece = layout.pieces.get(name)
            if piece and piece.expert is None:
                left.add(piece.parameter.removesuffix(_WEIGHT))
    return left


class Packed:
    """A checkpoint whose chosen matrices are packed while they are read (`Weights`).

    The tensors of a shard are in the order of their number formats, the widest first, so that each lies where its
    format may; until a shard's scales are written they are held, a sixteenth of its packed weights or less.
    """

    def __init__(
        self,
        plain: Weights,
        names: frozenset[str],
        group_size: int,
        counting: Counting,
        rounded: Callable[[str, Tensor, Counting], Rounded] | None = None,
    ) -> None:
        self._plain, self._counting, self._group_size = plain, counting, group_size
        self._rounded = rounded or (lambda name, weight_NK, counting: round_to_nearest(weight_NK, group_size))
        self._scales: dict[str, Tensor] = {}
        self._freed = 0
        self._specs: dict[str, Spec] = {}
        self._owners: dict[str, str] = {}
        self.shards: Mapping[str, tuple[str, ...]] = {
            file: self._in_shard(shard, names) for file, shard in plain.shards.items()
        }

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""
        return self._specs[name] if name in self._specs else self._plain.spec(name)

    def stored(self, name: str) -> Stored | None:
        """Where its bytes lie; None for what is packed while it is read."""
        return None if name in self._specs else self._plain.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor; a matrix's packed part has to be read before its scale."""
        owner = self._owners.get(name)
        if owner is None:
            return self._plain.read(name)
        if name == owner + SHAPE:
            return torch.tensor(self._plain.spec(owner).shape)
        if name == owner + SCALE and owner in self._scales:
            return self._scales.pop(owner)
        weight_NK = self._plain.read(owner)
        q_NK, scale_NG = self._rounded(owner, weight_NK, self._counting)
        packed = pack(q_NK)
        num_bytes = packed.nbytes + scale_NG.nbytes
        self._counting.compare(owner, weight_NK, dequantize(q_NK, scale_NG), num_bytes)
        self._freed += weight_NK.nbytes
        # Scales that are held lie between what is freed, and keep the C library from using it again.
        if self._freed > _GIVE_BACK:
            give_back()
            self._freed = 0
        if name == owner + SCALE:
            return scale_NG
        self._scales[owner] = scale_NG
        return packed

    def _in_shard(self, shard: tuple[str, ...], names: frozenset[str]) -> tuple[str, ...]:
        order: list[str] = []
        for name in shard:
            if name not in names:
                order.append(name)
                continue
            spec = self._plain.spec(name)
            rows, cols = spec.shape
            self._specs[name + SHAPE] = Spec("I64", (2,))
            self._specs[name + PACKED] = Spec("I32", (rows, cols // 8))
            self._specs[name + SCALE] = Spec(spec.dtype, (rows, cols // self._group_size))
            parts = [name + part for part in (SHAPE, PACKED, SCALE)]
            self._owners |= dict.fromkeys(parts, name)
            order += parts
        return tuple(sorted(order, key=lambda name: -DTYPES[self.spec(name).dtype].itemsize))


def round_to_nearest(weight_NK: Tensor, group_size: int) -> Rounded:
    """Integers and scales, in the weight's number format, that are as near to `weight_NK` as can be had cheaply.

    Each group's scale first spreads the integers over its range. Then, twice, it becomes the one that suits the
    integers best, which lessens the squared error as k-means does: by 6 % in norm against the range alone.
    """
    num_rows = max(1, _MAX_WEIGHTS // weight_NK.shape[1])
    pieces = [_round_rows(rows, group_size) for rows in weight_NK.split(num_rows)]
    q, scales = zip(*pieces, strict=True)
    return torch.cat(q), torch.cat(scales)


def _round_rows(weight_NK: Tensor, group_size: int) -> Rounded:
    groups_NGS = weight_NK.float().view(weight_NK.shape[0], -1, group_size)
    scale_NG1 = groups_NGS.abs().amax(-1, keepdim=True) / -LOWEST
    for _ in range(2):
        q_NGS = _nearest(groups_NGS, scale_NG1)
        best = (q_NGS * groups_NGS).sum(-1, keepdim=True) / q_NGS.square().sum(-1, keepdim=True)
        scale_NG1 = torch.where(best > 0, best, scale_NG1)  # a group of zeros has none
    stored_NG1 = scale_NG1.to(weight_NK.dtype)
    stored_NG1 = torch.where(stored_NG1 > 0, stored_NG1, 1)
    q_NGS = _nearest(groups_NGS, stored_NG1.float())
    return q_NGS.to(torch.int8).view(weight_NK.shape), stored_NG1.squeeze(-1)


def _nearest(groups_NGS: Tensor, scale_NG1: Tensor) -> Tensor:
    scale_NG1 = torch.where(scale_NG1 > 0, scale_NG1, 1)
    return (groups_NGS / scale_NG1).round_().clamp_(LOWEST, HIGHEST)
