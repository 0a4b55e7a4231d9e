"""A quantized folder's weights in 16 or 32 bits, each multiplied out when read: as a checkpoint or for a loader."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.checkpoint import DTYPES, NAMES, Checkpoint, Spec, Stored
from dsr1_tune.models.weights.converted import LazyTensor
from dsr1_tune.models.weights.index import ONE_FILE, read_json
from dsr1_tune.models.weights.quantized import NOT_READ, Quantized, find, is_for_activations
from dsr1_tune.models.weights.stored_format import StoredFormat, quantization
from dsr1_tune.quant import nf4

SHARD_BYTES = 5_000_000_000
TOLD_BESIDE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Where GPTQ's, AWQ's and ModelOpt's tools say what others write into config.json."""
WIDE = ("F16", "BF16")


class Dequantized:
    """The weights of a folder in `dtype` where they are quantized or in 16 bits; float32 stays. See checkpoint.Weights.

    `shapes` are those of the model's parameters, for bitsandbytes' layouts, of which one tensor may hold all experts.
    A `checkpoint` may be a part of the folder's. Raises ModelError, naming the tensor, for what cannot be read, and
    where nothing is quantized.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        shapes: Mapping[str, tuple[int, ...]],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.checkpoint, self.dtype = checkpoint or Checkpoint(folder), dtype
        self.quantized = quantized_in(folder, self.checkpoint, shapes)
        if not self.quantized:
            raise ModelError(
                f"{folder}: none of its weights is quantized in a way that is read here",
                hint="in 16 or 32 bits take quantization_config out of its config.json, and use it as it is",
            )
        parts = {part for one in self.quantized.values() for part in one.parts}
        begins = {one.parts[0]: one.name for one in self.quantized.values()}
        names = [
            begins.get(name, name)
            for stored in self.checkpoint.shards.values()
            for name in stored
            if name in begins or not (name in parts or is_for_activations(name))
        ]
        self.shards = _in_shards({name: self.spec(name).num_bytes for name in names}, SHARD_BYTES)

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""
        if one := self.quantized.get(name):
            return Spec(NAMES[self.dtype], one.shape)
        spec = self.checkpoint.spec(name)
        return Spec(NAMES[self.dtype], spec.shape) if spec.dtype in WIDE else spec

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are, if it stays as it is."""
        stays = name not in self.quantized and self.spec(name) == self.checkpoint.spec(name)
        return self.checkpoint.stored(name) if stays else None

    def read(self, name: str) -> Tensor:
        """The tensor as its spec says. Raises ModelError, naming it, where that number format cannot hold it."""
        dtype = DTYPES[self.spec(name).dtype]
        if one := self.quantized.get(name):
            return one.read(dtype)
        stored = self.checkpoint.read(name)
        tensor = stored.to(dtype)
        if tensor.dtype != stored.dtype and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{name}: does not fit into {NAMES[tensor.dtype]}", hint="choose bfloat16")
        return tensor


def open_quantized(folder: Path, dtype: torch.dtype, checkpoint: Checkpoint | None = None) -> dict[str, LazyTensor]:
    """Every weight of a folder that others have quantized by its name, in `dtype` where it is quantized.

    A `checkpoint` may be a part of the folder's.
    """
    weights = Dequantized(folder, dtype, {}, checkpoint)
    names = (name for names in weights.shards.values() for name in names)
    return {name: LazyTensor(weights.spec(name), partial(weights.read, name)) for name in names}


def num_parameters(folder: Path) -> int:
    """How many numbers the weights of a folder that others have quantized are; raises what `open_quantized` does."""
    return sum(tensor.spec.num_elements for tensor in open_quantized(folder, torch.bfloat16).values())


def told(folder: Path) -> dict[str, Any]:
    """How its weights are quantized, as the folder says; {} where it says nothing."""
    config = read_json(folder / "config.json")
    beside = next((read_json(folder / name) for name in TOLD_BESIDE if (folder / name).is_file()), {})
    nested = beside.get("quantization")
    said = quantization(config)
    if isinstance(said, dict) and said:
        return said
    return nested if isinstance(nested, dict) else beside


def quantized_in(folder: Path, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantized]:
    """The quantized weights of a folder by their names in 16 bits."""
    said = told(folder)
    stored = StoredFormat.of({"quantization_config": said})
    if stored.is_bitsandbytes:
        return _bitsandbytes("nf4" if stored is StoredFormat.BNB_NF4 else "int8", checkpoint, shapes)
    if stored is StoredFormat.NF4:
        return _own_nf4(checkpoint, shapes)
    if said.get("quant_method") == "bitsandbytes":
        raise ModelError(f"{folder}: is in a layout of bitsandbytes that is not read here", hint=NOT_READ)
    try:
        return find(checkpoint, said)
    except ModelError as error:
        raise ModelError(f"{folder}: {error.message}", hint=error.hint) from error


def _bitsandbytes(
    kind: bnb_layout.Kind, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Quantized]:
    def one(name: str, parts: tuple[str, ...]) -> Quantized:
        shape = bnb_layout.shape_of(kind, name, checkpoint) or _known(name, shapes)

        def make(dtype: torch.dtype) -> Tensor:
            return bnb_layout.dequantize(kind, name, {part: checkpoint.read(part) for part in parts}, shape).to(dtype)

        return Quantized(name, kind, (name, *(part for part in parts if part != name)), shape, make)

    return {name: one(name, parts) for name, parts in bnb_layout.find(kind, checkpoint.names).items()}


def _own_nf4(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Quantized]:
    """What `save_pretrained` leaves of a model that was loaded in NF4: its parameters, as quant.nf4 holds them."""

    def one(name: str) -> Quantized:
        shape = _known(name, shapes)
        parts = [f"{name}_{part}" for part in ("packed", "absmax", "scale", "offset")]

        def make(dtype: torch.dtype) -> Tensor:
            packed, absmax, scale, offset = (checkpoint.read(part) for part in parts)
            held = nf4.Nf4(packed, absmax, scale, offset, rows=shape[-2], cols=shape[-1], dtype=torch.float32)
            return held.matrices(slice(None)).reshape(shape).to(dtype)

        return Quantized(name, "nf4", (*parts, f"{name}_error"), shape, make)

    names = [stored.removesuffix("_packed") for stored in checkpoint.names if stored.endswith("_packed")]
    return {name: one(name) for name in names}


def _known(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if name not in shapes:
        raise ModelError(
            f"{name}: has no place in a model of that config.json, so its shape is not known", hint=NOT_READ
        )
    return shapes[name]


def _in_shards(sizes: Mapping[str, int], most: int) -> dict[str, tuple[str, ...]]:
    """Names in their order, cut into files of at most so many bytes unless one tensor alone is larger."""
    files: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if files[-1] and held + size > most:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    if len(files) == 1:
        return {ONE_FILE: tuple(files[0])}
    return {f"model-{i:05}-of-{len(files):05}.safetensors": tuple(names) for i, names in enumerate(files, 1)}
