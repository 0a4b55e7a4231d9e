"""bitsandbytes' layout on disk: a matrix in NF4 or int8 as the tensors that its own `QuantState` and Linear8bitLt read.

`X.weight` in NF4 is `X.weight` (packed) with `.absmax`, `.nested_absmax`, `.quant_map`, `.nested_quant_map` and
`.quant_state.bitsandbytes__nf4`; in int8 `X.weight` with `X.SCB` and `X.weight_format`. bitsandbytes has no layout for
one tensor X that holds all experts of a layer, as gpt-oss stores them: such a one is `X`, a row for each expert, with
`X.absmax` and so on as quant.nf4 and quant.int8 name the parts. No other loader takes that for weights of that shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from bitsandbytes import functional as bnb
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.checkpoint import DTYPES, NAMES, Checkpoint, Spec
from dsr1_tune.models.weights.index import COPY_AGAIN
from dsr1_tune.quant import int8, nf4

Kind = Literal["nf4", "int8"]
STATE = ".quant_state.bitsandbytes__nf4"
_FUSED = ".error"
_NF4_PARTS = ("absmax", "nested_absmax", "quant_map", "nested_quant_map")
_FUSED_PARTS: dict[Kind, tuple[str, ...]] = {"nf4": ("absmax", "scale", "offset"), "int8": ("scale",)}
_LONGEST_FLOAT = 24


def specs(kind: Kind, name: str, spec: Spec) -> dict[str, Spec]:
    """The tensors that a weight becomes, in the order in which they are written."""
    if len(spec.shape) == 3:
        wanted = (nf4 if kind == "nf4" else int8).sizes(*spec.shape)
        found = {part: Spec(NAMES[dtype], shape) for part, (shape, dtype) in wanted.items()}
        found["packed"] = Spec(found["packed"].dtype, (spec.shape[0], found["packed"].num_elements // spec.shape[0]))
        return {_fused_part(name, part): spec for part, spec in found.items()}
    rows, cols = spec.shape
    if kind == "int8":
        owner = name.removesuffix("weight")
        parts = {f"{owner}SCB": Spec("F32", (rows,)), f"{owner}weight_format": Spec("U8", ())}
        return {name: Spec("I8", (rows, cols)), **parts}
    blocks = rows * cols // nf4.BLOCK
    return {
        name: Spec("U8", (rows * cols // 2, 1)),
        f"{name}.absmax": Spec("U8", (blocks,)),
        f"{name}.nested_absmax": Spec("F32", (math.ceil(blocks / nf4.SCALES_BLOCK),)),
        f"{name}.quant_map": Spec("F32", (16,)),
        f"{name}.nested_quant_map": Spec("F32", (256,)),
        f"{name}{STATE}": Spec("U8", (len(_state((rows, cols), spec.dtype, 0.0)),)),
    }


def quantize(kind: Kind, name: str, weight: Tensor) -> tuple[dict[str, Tensor], float]:
    """(the tensors that `specs` names, |W - W'| / |W| by Frobenius norms) of a matrix, or of E in one tensor."""
    matrices = weight if weight.dim() == 3 else weight.unsqueeze(0)
    held = nf4.quantize(matrices, name) if kind == "nf4" else int8.quantize(matrices)
    # Of several, the root of the mean of squares: as of one, if they are of about the same size.
    error = float(held["error"].square().mean().sqrt())
    if weight.dim() == 3:
        held["packed"] = held["packed"].flatten(1)
        return {_fused_part(name, part): tensor for part, tensor in held.items()}, error
    if kind == "int8":
        owner = name.removesuffix("weight")
        format_ = torch.tensor(0, dtype=torch.uint8)  # row by row
        return {name: held["packed"][0], f"{owner}SCB": held["scale"][0], f"{owner}weight_format": format_}, error
    state = _state(tuple(weight.shape), NAMES[weight.dtype], float(held["offset"][0]))
    parts = {
        name: held["packed"].view(-1, 1),
        f"{name}.absmax": held["absmax"][0],
        f"{name}.nested_absmax": held["scale"][0],
        f"{name}.quant_map": bnb.get_4bit_type("nf4", device="cpu"),
        f"{name}.nested_quant_map": bnb.create_dynamic_map(),
        f"{name}{STATE}": torch.frombuffer(bytearray(state), dtype=torch.uint8),
    }
    return parts, error


def find(kind: Kind, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The quantized weights among stored tensors, each with the tensors that make it up.

    Raises ModelError, naming it, where one of those is missing.
    """
    stored = set(names)
    found: dict[str, tuple[str, ...]] = {}
    for name in sorted(stored):
        if kind == "nf4" and name.endswith(STATE):
            weight = name.removesuffix(STATE)
            found[weight] = (weight, *(f"{weight}.{part}" for part in _NF4_PARTS), name)
        elif kind == "int8" and name.endswith(".SCB"):
            weight = f"{name.removesuffix('SCB')}weight"
            found[weight] = (weight, name, f"{name.removesuffix('SCB')}weight_format")
        elif name.endswith(_FUSED):
            weight = name.removesuffix(_FUSED)
            parts = (nf4 if kind == "nf4" else int8).sizes(1, 64, 64)
            found[weight] = tuple(_fused_part(weight, part) for part in parts)
    for weight, parts in found.items():
        if absent := [part for part in parts if part not in stored]:
            raise ModelError(
                f"{weight}: {absent[0]} is missing; only NF4 with doubly quantized scales and int8 by rows are read",
                hint=COPY_AGAIN,
            )
    return found


def shape_of(kind: Kind, name: str, stored: Checkpoint) -> tuple[int, ...] | None:
    """The shape of a quantized weight among stored tensors; None for one that holds all experts of a layer."""
    if name + _FUSED in stored:
        return None
    if kind == "int8":
        return stored.spec(name).shape
    shape: tuple[int, ...] = read_state(stored.read(name + STATE))["shape"]
    return shape


def dequantize(kind: Kind, name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """A weight in float32 from the tensors that make it up, a matrix as bitsandbytes itself reads it."""
    if name + _FUSED in parts:
        held = {part: parts[_fused_part(name, part)] for part in ("packed", *_FUSED_PARTS[kind])}
        if kind == "int8":
            return int8.Int8(held["packed"].view(shape), held["scale"], torch.float32).matrices(slice(None))
        return nf4.Nf4(**held, rows=shape[1], cols=shape[2], dtype=torch.float32).matrices(slice(None))
    if kind == "int8":
        return bnb.int8_vectorwise_dequant(parts[name], parts[f"{name.removesuffix('weight')}SCB"])
    own = {part.removeprefix(f"{name}."): tensor for part, tensor in parts.items() if part != name}
    state = bnb.QuantState.from_dict(own, torch.device("cpu"))
    state.shape, state.dtype = torch.Size((math.prod(shape) // nf4.BLOCK, nf4.BLOCK)), torch.float32
    return bnb.dequantize_4bit(parts[name], state).view(shape)


def part_name(kind: Kind, weight: str, part: str, is_fused: bool) -> str:
    """The stored tensor that holds a part of a weight, as `quant.nf4` and `quant.int8` name those."""
    if is_fused:
        return _fused_part(weight, part)
    if kind == "int8":
        return {"packed": weight, "scale": f"{weight.removesuffix('weight')}SCB"}[part]
    return weight + {"packed": "", "absmax": ".absmax", "scale": ".nested_absmax", "offset": STATE}[part]


def _fused_part(weight: str, part: str) -> str:
    return weight if part == "packed" else f"{weight}.{part}"


def _state(shape: tuple[int, ...], dtype: str, offset: float) -> bytes:
    """What of a QuantState is no tensor, as JSON; of the same length whatever the offset is."""
    tree = {
        "quant_type": "nf4",
        "blocksize": nf4.BLOCK,
        "dtype": str(DTYPES[dtype]).removeprefix("torch."),
        "shape": list(shape),
        "nested_blocksize": nf4.SCALES_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": offset,
    }
    # The header of a shard, which says how long each tensor is, is written before any of them is quantized. A multiple
    # of 8 keeps the tensors that follow aligned.
    length = len(json.dumps(tree | {"nested_offset": 0.0})) + _LONGEST_FLOAT
    return json.dumps(tree).ljust(length + -length % 8).encode()


def read_state(tensor: Tensor) -> dict[str, Any]:
    """The other way round. Raises ValueError for what is none, or is not of the only kind that is held."""
    tree = json.loads(bytes(tensor.tolist()).decode())
    for name, value in (("quant_type", "nf4"), ("blocksize", nf4.BLOCK), ("nested_blocksize", nf4.SCALES_BLOCK)):
        if tree.get(name) != value:
            raise ValueError(f"its {name} is {tree.get(name)}, not {value}")
    return {"shape": tuple(tree["shape"]), "offset": float(tree["nested_offset"])}
