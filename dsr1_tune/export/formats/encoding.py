"""A quantized model folder written from any source, one matrix in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsr1_tune.export.weights.accounting import Counting, Group, Quantized, check_all, skipped_modules
from dsr1_tune.export.weights.progress import counted
from dsr1_tune.export.weights.sidecars import copy_sidecars
from dsr1_tune.models.weights.checkpoint import Spec, write_weights
from dsr1_tune.models.weights.converted import Converted

if TYPE_CHECKING:
    from dsr1_tune.export.weights.source import Source
    from dsr1_tune.runs.console import Narrator


@dataclass(frozen=True)
class Encoding:
    """How some matrices of a model are stored; all other tensors are copied."""

    names: frozenset[str]
    """The stored names of the matrices."""
    specs: Callable[[str, Spec], dict[str, Spec]]
    """(name, dtype and shape of a matrix) → the tensors that it becomes, in the order in which they are written."""
    encode: Callable[[str, Tensor], tuple[Mapping[str, Tensor], float]]
    """(name, matrix W) → those tensors, and |W - W'| (Frobenius norm) of the matrix W' that they stand for."""
    config: Callable[[list[str], tuple[Group, ...]], dict[str, Any]]
    """(modules that stay in 16 bits, what was quantized) → the `quantization_config` of config.json."""
    read: Callable[[str], Tensor] | None = None
    """Reads a matrix more exactly than the source's own 16 bits; None reads those."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For lineage.json."""


def write_encoded(encoding: Encoding, source: Source, folder: Path, narrator: Narrator) -> Quantized:
    """Write the source's weights, config and tokenizer to `folder`, the named matrices encoded.

    Raises ModelError where a matrix was left out, or its encoding does not stand for anything like it.
    """
    counting = Counting(source.layout)

    def make(name: str, weight: Tensor) -> Mapping[str, Tensor]:
        parts, error = encoding.encode(name, weight)
        num_bytes = sum(part.nbytes for part in parts.values())
        counting.add(name, weight.numel(), num_bytes, error, float(weight.float().norm()))
        return parts

    weights = Converted(source.weights, encoding.names, encoding.specs, make, encoding.read)
    with counted(narrator, weights) as advance:
        write_weights(weights, folder, advance)
    check_all(encoding.names, counting.names)
    groups = counting.groups()
    stored_as = encoding.config(skipped_modules(source, encoding.names), groups)
    copy_sidecars(source, folder, {**source.config, "quantization_config": stored_as}, narrator.say)
    return Quantized(groups, encoding.facts)


def distance(weight: Tensor, back: Tensor) -> float:
    """|W - W'|, the Frobenius norm, in float32."""
    return float((back.float() - weight.float()).norm())
