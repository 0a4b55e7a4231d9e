"""Weights made when they are asked for: some of several stored tensors each, some dequantized as they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint, Spec, Stored, Weights
from dsr1_tune.models.weights.index import COPY_AGAIN
from dsr1_tune.models.weights.quantized import FLOAT8
from dsr1_tune.quant import fp8, w4a16


class Converted:
    """`weights` with those named in `chosen` replaced by what `make` makes of them; see checkpoint.Weights.

    specs(name, spec) says what a weight becomes: names, number formats and shapes, in the order in which they are
    written; make(name, weight) the tensors themselves. read(name) gives the weight, where that is to be more exact
    than `weights` say.
    """

    def __init__(
        self,
        weights: Weights,
        chosen: Collection[str],
        specs: Callable[[str, Spec], dict[str, Spec]],
        make: Callable[[str, Tensor], Mapping[str, Tensor]],
        read: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._weights, self._make, self._read = weights, make, read or weights.read
        self._made_of: dict[str, str] = {}
        self._specs: dict[str, Spec] = {}
        self._last: tuple[str, Mapping[str, Tensor]] = ("", {})
        for name in chosen:
            becomes = specs(name, weights.spec(name))
            self._specs |= becomes
            self._made_of |= dict.fromkeys(becomes, name)

    @cached_property
    def shards(self) -> dict[str, tuple[str, ...]]:
        """As those of the weights that it is made of."""
        becomes: dict[str, list[str]] = {}
        for part, name in self._made_of.items():
            becomes.setdefault(name, []).append(part)
        return {
            file: self._in_order([part for name in names for part in becomes.get(name, [name])])
            for file, names in self._weights.shards.items()
        }

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""
        return self._specs[name] if name in self._specs else self._weights.spec(name)

    def stored(self, name: str) -> Stored | None:
        """Where the bytes of a tensor that stays as it is are stored."""
        return None if name in self._specs else self._weights.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor; the others that its weight becomes are kept until another weight's are asked for."""
        if name not in self._specs:
            return self._weights.read(name)
        weight = self._made_of[name]
        if self._last[0] != weight:
            self._last = ("", {})  # first give back what is no longer needed
            self._last = (weight, self._make(weight, self._read(weight)))
        return self._last[1][name]

    def _in_order(self, names: list[str]) -> tuple[str, ...]:
        """The same names so that every tensor starts at a multiple of its numbers' size, as safetensors reads them.

        Single numbers go last; where matrices are of odd sizes, the widest numbers go first, as safetensors itself
        writes them, at the price that weights are converted more than once.
        """
        names = sorted(names, key=lambda name: self.spec(name).num_bytes == 1)
        place = 0
        for name in names:
            spec = self.spec(name)
            if place % DTYPES[spec.dtype].itemsize:
                return tuple(sorted(names, key=lambda name: -DTYPES[self.spec(name).dtype].itemsize))
            place += spec.num_bytes
        return tuple(names)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read, or made of several stored ones, each time that it is indexed."""

    spec: Spec
    make: Callable[[], Tensor]

    @classmethod
    def as_stored(cls, checkpoint: Checkpoint, name: str) -> LazyTensor:
        """The stored tensor itself."""
        return cls(checkpoint.spec(name), lambda: checkpoint.read(name))

    def __getitem__(self, index: Any) -> Tensor:
        return self.make()[index]

    def get_dtype(self) -> str:
        """As safetensors names it."""
        return self.spec.dtype

    def get_shape(self) -> list[int]:
        """Of the tensor."""
        return list(self.spec.shape)


def open_fp8(checkpoint: Checkpoint, block_size: tuple[int, int]) -> dict[str, LazyTensor]:
    """Every weight of a block-FP8 checkpoint by its name, in float32 where it has scales."""

    def scaled(name: str) -> LazyTensor:
        scale = name + fp8.SCALE
        if scale not in checkpoint:
            if checkpoint.spec(name).dtype in FLOAT8:
                raise ModelError(f"{name}: is in float8, and no {scale} is stored beside it", hint=COPY_AGAIN)
            return LazyTensor.as_stored(checkpoint, name)
        spec = Spec("F32", checkpoint.spec(name).shape)
        return LazyTensor(spec, lambda: fp8.dequantize(checkpoint.read(name), checkpoint.read(scale), block_size))

    return {name: scaled(name) for name in checkpoint.names if not name.endswith(fp8.SCALE)}


def open_w4a16(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """Every weight of a W4A16 checkpoint by its name, in its scales' format; a weight without scales is left out."""

    def unpacked(name: str) -> LazyTensor:
        packed, scale = name + w4a16.PACKED, name + w4a16.SCALE
        rows, words = checkpoint.spec(packed).shape
        spec = Spec(checkpoint.spec(scale).dtype, (rows, words * w4a16.PER_WORD))
        return LazyTensor(spec, lambda: w4a16.dequantize(w4a16.unpack(checkpoint.read(packed)), checkpoint.read(scale)))

    whole = {name.removesuffix(w4a16.PACKED) for name in checkpoint.names if name.endswith(w4a16.PACKED)}
    parts = {name + part for name in whole for part in (w4a16.PACKED, w4a16.SCALE, w4a16.SHAPE)}
    weights = {name: LazyTensor.as_stored(checkpoint, name) for name in checkpoint.names if name not in parts}
    return weights | {name: unpacked(name) for name in whole if name + w4a16.SCALE in checkpoint}


def open_bitsandbytes(
    checkpoint: Checkpoint, kind: bnb_layout.Kind, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, LazyTensor]:
    """Every weight of a checkpoint in bitsandbytes' layout by its name, in float32 where it is quantized.

    `shapes` are those of the model's parameters, for experts of which one tensor holds all.
    """
    quantized = bnb_layout.find(kind, checkpoint.names)
    inside = {part for parts in quantized.values() for part in parts}
    weights = {name: LazyTensor.as_stored(checkpoint, name) for name in checkpoint.names if name not in inside}

    def multiplied(name: str, parts: tuple[str, ...]) -> LazyTensor:
        shape = bnb_layout.shape_of(kind, name, checkpoint) or shapes[name]

        def make() -> Tensor:
            return bnb_layout.dequantize(kind, name, {part: checkpoint.read(part) for part in parts}, shape)

        return LazyTensor(Spec("F32", shape), make)

    return weights | {name: multiplied(name, parts) for name, parts in quantized.items()}
