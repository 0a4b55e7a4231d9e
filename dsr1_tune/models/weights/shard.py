"""A process's own experts alone: which tensors it reads of a checkpoint, and the model that they are put into.

What is stored of one expert is read by the process that holds it; of a tensor that is stored for all experts of a layer
each process reads its rows. All that belongs to no expert is read by every process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights import bnb_layout
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.dequantized import quantized_in
from dsr1_tune.models.weights.layout import Layout, Piece
from dsr1_tune.models.weights.stored_format import StoredFormat
from dsr1_tune.moe.anatomy import ExpertBlock, find_experts
from dsr1_tune.moe.expert_lora import is_known_layout
from dsr1_tune.moe.expert_shard import ExpertParallel, ExpertShard, mark_sharded
from dsr1_tune.moe.llama4 import adopt
from dsr1_tune.moe.quantized_experts import reserve_nf4
from dsr1_tune.quant.nf4 import put_placeholder

_BY_DATA = "take parallel.strategy=ddp, which shares out the data alone"


@dataclass(frozen=True)
class OwnPart:
    """What a process reads of a checkpoint: all but the experts of others."""

    checkpoint: Checkpoint
    layout: Layout
    """Of the model that holds the experts of this process alone, counted from 0."""

    @classmethod
    def of(cls, folder: Path, config: Any, parallel: ExpertParallel) -> OwnPart:
        """That of a model folder, whose config says how it is quantized. No weights are read.

        Raises ModelError for a model whose experts cannot be shared out, or not among so many.
        """
        checkpoint, stored_as = Checkpoint(folder), StoredFormat.of(config)
        model = meta_model(config)
        check_shared(model, parallel)
        if stored_as is StoredFormat.NF4:
            _hold_nf4(model)
        quantized = _quantized(folder, checkpoint, stored_as)
        parts = {part for parts in quantized.values() for part in parts}
        names = [*(name for name in checkpoint.names if name not in parts), *quantized]
        layout = Layout.of(model, names)
        held = {
            f"{block.name}.{leaf}": ExpertShard(block.num_experts, parallel)
            for block in find_experts(model)
            for leaf in (*block.module._parameters, *block.module._buffers)
        }
        rows: dict[str, range | None] = {}
        for name in names:
            piece = layout.pieces.get(name)
            shard = held.get(piece.parameter) if piece else None
            rows |= _read(checkpoint, quantized.get(name, (name,)), piece, shard)
        return cls(checkpoint.part(rows), layout.of_experts({name: shard.mine for name, shard in held.items()}))


def check_shared(model: nn.Module, parallel: ExpertParallel) -> None:
    """Raise ModelError for a model whose experts cannot be shared out, or not among so many processes."""
    adopt(model)
    blocks = find_experts(model)
    family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not blocks:
        raise ModelError(f"{family}: is a dense model, which has no experts to share out", hint=_BY_DATA)
    for block in blocks:
        if not is_known_layout(block.module) or not _is_by_expert(block):
            raise ModelError(
                f"{family}: its experts ({block.name}, {type(block.module).__name__}) compute in a way in which they "
                "cannot be shared out",
                hint=_BY_DATA,
            )
    if (fewest := min(block.num_experts for block in blocks)) < parallel.size:
        raise ModelError(
            f"{family}: its layers have {fewest} experts, which cannot be shared out among {parallel.size} processes",
            hint=f"start {fewest} processes or fewer",
        )


def hold_own(model: nn.Module, parallel: ExpertParallel) -> None:
    """Cut a model without weights to this process's experts: the fused weights, and what is said of their number."""
    adopt(model)
    for block in find_experts(model):
        shard, module = ExpertShard(block.num_experts, parallel), block.module
        for name, weight in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_cut(weight, shard), requires_grad=weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _cut(buffer, shard))
        module.num_experts = len(shard.mine)
        mark_sharded(module, shard)


def holding_own(kind: Any, parallel: ExpertParallel) -> Any:
    """The same class of models, of which one is made with this process's experts alone."""

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, *args, **kwargs)
        hold_own(self, parallel)

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), names | {"__init__": make})


def _cut(weight: Tensor, shard: ExpertShard) -> Tensor:
    return weight.new_empty(len(shard.mine), *weight.shape[1:])


def _is_by_expert(block: ExpertBlock) -> bool:
    """Whether all that a module of experts holds itself are tensors with a row for each of them."""
    own: Iterable[Tensor] = (*block.module.parameters(recurse=False), *block.module.buffers(recurse=False))
    return all(tensor.shape[:1] == (block.num_experts,) for tensor in own)


def _hold_nf4(model: nn.Module) -> None:
    """As a model is before weights that are stored in our own NF4 are loaded into it: they are buffers' names."""
    for name in reserve_nf4(model):
        owner, _, leaf = name.rpartition(".")
        put_placeholder(model.get_submodule(owner), leaf)


def _quantized(folder: Path, checkpoint: Checkpoint, stored_as: StoredFormat) -> Mapping[str, tuple[str, ...]]:
    """By the name of each weight in 16 bits the stored tensors that make it up, where a loader multiplies them out."""
    if stored_as in (StoredFormat.PLAIN, StoredFormat.NF4):
        return {}
    if stored_as.is_bitsandbytes:
        return bnb_layout.find("nf4" if stored_as is StoredFormat.BNB_NF4 else "int8", checkpoint.names)
    return {name: one.parts for name, one in quantized_in(folder, checkpoint, {}).items()}


def _read(
    checkpoint: Checkpoint, parts: Iterable[str], piece: Piece | None, shard: ExpertShard | None
) -> dict[str, range | None]:
    """Which of the stored tensors that make up a weight are read, and which rows of them; None for all."""
    if piece is None or shard is None:
        return dict.fromkeys(parts)
    if piece.expert is not None:
        return dict.fromkeys(parts) if piece.expert in shard.mine else {}
    rows: dict[str, range | None] = {}
    for part in parts:
        spec = checkpoint.spec(part)
        is_by_expert = spec.shape[:1] == (shard.num_experts,)
        if not is_by_expert and spec.num_elements > 1:
            raise ModelError(
                f"{part}: {spec.shape} holds the {shard.num_experts} experts of a layer in a way in which they cannot "
                "be read one by one",
                hint=_BY_DATA,
            )
        rows[part] = shard.mine if is_by_expert else None
    return rows
