"""Stored weights as transformers' loader takes them in place of files: each is read, and dequantized, when indexed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec
from dsr1_tune.quant import fp8, w4a16


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
