"""Weights that are made of others while they are read: block-FP8 dequantized, and a base with its updates in it."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.updates import Updates
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint, Spec, Stored, Weights
from dsr1_tune.models.weights.index import COPY_AGAIN
from dsr1_tune.quant.fp8 import SCALE, dequantize, to_blocks

_PIECE = 4 << 20  # bytes compared at a time


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
    """A block-FP8 base with updates in it, in block-FP8 again: what no update reaches keeps its bytes and scales."""

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
                self._encoded = (owner, *to_blocks(self.merged.exact(owner), self.block_size))
            _, weight, scale = self._encoded
        return weight if name == owner else scale.to(DTYPES[self.spec(name).dtype])


MergedWeights = Merged | MergedFp8


def owner_of(name: str, weights: Checkpoint) -> str:
    """The weight whose FP8 scales a tensor is, or the tensor itself."""
    owner = name.removesuffix(SCALE)
    return owner if owner in weights else name


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
