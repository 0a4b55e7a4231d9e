"""Weights that are made of others while they are read: block-FP8 dequantized, and a base with its updates in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from threading import Lock
from zlib import crc32

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.updates import Updates
from dsr1_tune.models.weights.apart import assembled, shards_together, stored_shape
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint, Spec, Stored, Weights
from dsr1_tune.models.weights.index import COPY_AGAIN
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.quant.fp8 import SCALE, dequantize, to_blocks

_PIECE = 4 << 20  # bytes compared, or numbers computed with, at a time


class Plain:
    """A checkpoint whose block-FP8 tensors are in bfloat16, each dequantized when it is read."""

    def __init__(self, base: Checkpoint, block_size: tuple[int, int] | None) -> None:
        self.base, self.block_size = base, block_size
        # A weight's scales may lie in another file than the weight.
        self.shards: Mapping[str, tuple[str, ...]] = {
            file: kept
            for file, names in base.shards.items()
            if (kept := tuple(n for n in names if owner_of(n, base) == n))
        }

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def _is_scaled(self, name: str) -> bool:
        return name + SCALE in self.base

    def spec(self, name: str) -> Spec:
        """In bfloat16 where it is stored in FP8."""
        spec = self.base.spec(name)
        return Spec("BF16", spec.shape) if self._is_scaled(name) else spec

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are, unless they are to be dequantized."""
        return None if self._is_scaled(name) else self.base.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor as its spec says."""
        return self.exact(name).to(DTYPES[self.spec(name).dtype])

    def exact(self, name: str) -> Tensor:
        """The tensor as exactly as it is stored: in float32 where it is in FP8."""
        weight = self.base.read(name)
        if not self._is_scaled(name):
            return weight
        if self.block_size is None:
            raise ModelError(f"{name}: has scales, but config.json says nothing of FP8", hint=COPY_AGAIN)
        return dequantize(weight, self.base.read(name + SCALE), self.block_size)


class Together(Plain):
    """A checkpoint whose experts are stored one by one, put together as transformers stores them."""

    def __init__(self, base: Checkpoint, block_size: tuple[int, int] | None, layout: Layout) -> None:
        super().__init__(base, block_size)
        self._layout = layout
        self._made = {one.piece.stored: one for one in layout.apart}
        self.shards = shards_together(self.shards, layout)

    def __contains__(self, name: object) -> bool:
        return name in self._made or name in self.base

    def spec(self, name: str) -> Spec:
        """As that of a matrix, with the shape that all have together."""
        if (one := self._made.get(name)) is None:
            return super().spec(name)
        return Spec(super().spec(one.matrices[0].stored).dtype, stored_shape(one, self._layout))

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are, unless they are to be put together or dequantized."""
        return None if name in self._made else super().stored(name)

    def exact(self, name: str) -> Tensor:
        """The tensor as exactly as its parts are stored."""
        if (one := self._made.get(name)) is None:
            return super().exact(name)
        return assembled(one, self._layout, super().exact)


class Merged:
    """A base with updates in it: added in float32, rounded once to what the base stores; the rest is left alone."""

    def __init__(self, base: Plain, updates: Updates) -> None:
        self.base, self.updates = base, updates
        self.shards = base.shards

    def spec(self, name: str) -> Spec:
        """That of the base."""
        return self.base.spec(name)

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are in the base, if it stays as it is."""
        return None if name in self.updates.by_name else self.base.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor as its spec says."""
        return self.exact(name).to(DTYPES[self.spec(name).dtype])

    def exact(self, name: str) -> Tensor:
        """The tensor before it is rounded."""
        update = self.updates.by_name.get(name)
        if update is None:
            return self.base.exact(name)
        with torch.no_grad():
            return update(self.base.exact(name).float())


class MergedFp8:
    """A block-FP8 base with updates in it, in block-FP8 again: what no update reaches keeps its bytes and scales.

    An update is mostly less than half a step of float8, and would be lost in rounding to the nearest: it is rounded by
    chance, the same way every time.
    """

    def __init__(self, merged: Merged, block_size: tuple[int, int]) -> None:
        self.merged, self.block_size = merged, block_size
        self.base = merged.base.base
        self.shards = self.base.shards
        self._encoded: tuple[str, Tensor, Tensor] | None = None
        self._lock = Lock()

    def spec(self, name: str) -> Spec:
        """That of the base."""
        return self.base.spec(name)

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are in the base, if it stays as it is."""
        is_merged = owner_of(name, self.base) in self.merged.updates.by_name
        return None if is_merged else self.base.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor as its spec says; a weight and its scales are encoded together."""
        owner = owner_of(name, self.base)
        if owner + SCALE not in self.base:
            return self.merged.read(name)
        with self._lock:
            if self._encoded is None or self._encoded[0] != owner:
                self._encoded = None  # before the next is made: there is never more than one
                self._encoded = (owner, *self._encode(owner))
            _, weight, scale = self._encoded
        return weight if name == owner else scale.to(DTYPES[self.spec(name).dtype])

    def _encode(self, name: str) -> tuple[Tensor, Tensor]:
        exact, scales = self.merged.exact(name), self.base.read(name + SCALE)
        return to_blocks(exact, self.block_size, seed=crc32(name.encode()), scales=scales)


MergedWeights = Merged | MergedFp8


def owner_of(name: str, weights: Checkpoint) -> str:
    """The weight whose FP8 scales a tensor is, or the tensor itself."""
    owner = name.removesuffix(SCALE)
    return owner if owner in weights else name


@dataclass(frozen=True)
class Kept:
    """How much of an update is still there once the sum was rounded; those of several tensors can be added up."""

    along: float = 0.0
    """What the stored tensor differs from the base by, times the update, summed over all numbers."""
    squares: float = 0.0
    """The update, squared and summed, as are the next two."""
    rounding: float = 0.0
    """What the stored tensor is off by."""
    base: float = 0.0

    @property
    def share(self) -> float:
        """1 where all of it was kept (what rounding adds besides counts neither way), 0 where nothing was."""
        return self.along / self.squares if self.squares else 1.0

    @property
    def size(self) -> float:
        """Size of the update against that of the base's weights."""
        return math.sqrt(self.squares / self.base) if self.base else 0.0

    @property
    def noise(self) -> float:
        """Size of what rounding adds against that of the base's weights."""
        return math.sqrt(self.rounding / self.base) if self.base else 0.0

    def __add__(self, other: Kept) -> Kept:
        return Kept(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @classmethod
    def of(cls, stored: Tensor, exact: Tensor, was: Tensor) -> Kept:
        """Of one tensor: as it is stored, before it was rounded, and in the base."""
        kept = cls()
        # A piece at a time: in float64 the whole of them would be the largest tensors of all.
        for pieces in zip(*(tensor.reshape(-1).split(_PIECE) for tensor in (stored, exact, was)), strict=True):
            now, added_up, before = (piece.double() for piece in pieces)
            update, off = added_up - before, now - added_up
            kept += cls(
                *(float(a @ b) for a, b in ((now - before, update), (update, update), (off, off), (before, before)))
            )
        return kept


def kept_of(merged: Merged, weights: MergedWeights, name: str) -> Kept:
    """How much of its update a tensor will keep as `weights` round it."""
    stored = weights.read(name)
    if isinstance(weights, MergedFp8) and name + SCALE in weights.base:
        stored = dequantize(stored, weights.read(name + SCALE), weights.block_size)
    return Kept.of(stored, merged.exact(name), merged.base.exact(name))


def is_changed(weights: Weights, name: str, other: Weights) -> bool:
    """Whether a tensor is another one than of the same name in other weights, byte by byte."""
    mine, theirs = weights.stored(name), other.stored(name)
    if weights.spec(name) != other.spec(name):
        return True
    if mine and theirs:
        return mine.end - mine.begin != theirs.end - theirs.begin or _differ(mine, theirs)
    a, b = weights.read(name), other.read(name)
    return not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _differ(mine: Stored, theirs: Stored) -> bool:
    """Whether two places of one size on disk hold different bytes; reads no further than the first difference."""
    left = mine.end - mine.begin
    with mine.file.open("rb") as one, theirs.file.open("rb") as other:
        one.seek(mine.begin)
        other.seek(theirs.begin)
        while left > 0:
            size = min(left, _PIECE)
            if one.read(size) != other.read(size):
                return True
            left -= size
    return False
