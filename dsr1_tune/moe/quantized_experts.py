"""Fused routed experts and linear layers held in NF4: which weights, how experts compute with them, and the proof.

transformers' `load_in_4bit` quantizes nn.Linear alone and leaves the experts, nine tenths of a mixture, in 16 bits.
Here both are held as `quant.nf4` says. `audit_bits` tells what a model really holds, and refuses one of which routed
experts are left in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import PARTS, Anatomy, Part, find_experts, find_linears
from dsr1_tune.moe.expert_lora import is_known_layout, plain_experts
from dsr1_tune.moe.expert_shard import shard_of
from dsr1_tune.moe.known import check_known
from dsr1_tune.moe.llama4 import adopt, compute_by
from dsr1_tune.moe.past import read_past
from dsr1_tune.quant.nf4 import (
    Nf4,
    Nf4Linear,
    fits,
    holding,
    is_held,
    keep_placeholder_out,
    renew_placeholder,
    reserve,
    stored_weight,
)

EXPERTS_IMPLEMENTATION = "nf4"
HELD_WHOLE: set[Part] = {"router", "embeddings", "norms"}
_MAX_ERROR = 0.5


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, plain_experts)
ALL_EXPERTS_FUNCTIONS.register("int8", plain_experts)  # held the same way


def weights_to_hold(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module with the name of its weight that goes into NF4.

    All but router, norms, embeddings and output head; what is no plain linear layer (convolutions, weights that are
    read past their layer) or does not divide into blocks of 64 stays as well.
    Raises ModelError for experts that cannot be held.
    """
    adopt(model)
    blocks = find_experts(model)
    check_known(model)
    for block in blocks:
        if not is_known_layout(block.module):
            raise ModelError(
                f"{type(model).__name__}: its experts ({block.name}, {type(block.module).__name__}) compute in a way "
                "that cannot be held in 4 bits",
                hint="train it with lora, in 16 bits",
            )
        for name in block.parameters:
            shape = getattr(block.module, name).shape
            if not fits(shape[1], shape[2]):
                raise ModelError(
                    f"the experts of {type(block.module).__name__} are {shape[1]} × {shape[2]}, "
                    "which does not divide into blocks of 64 weights",
                    hint="train it with lora, in 16 bits",
                )
            yield block.module, name
    past = read_past(model)
    for name, linear, part in find_linears(model):
        if name not in past and part not in HELD_WHOLE and fits(*linear.weight.shape):
            yield linear, "weight"


def reserve_nf4(model: nn.Module) -> set[str]:
    """Prepare a model without weights (on meta) for quantized ones; returns the full names of the weights."""
    names = {id(module): name for name, module in model.named_modules()}
    reserved = set()
    for module, weight in list(weights_to_hold(model)):
        reserve(module, weight)
        module.__class__ = Nf4Linear if isinstance(module, nn.Linear) else holding(module.__class__)
        reserved.add(f"{names[id(module)]}.{weight}")
    return reserved


def finish_nf4(model: nn.Module, implementation: str = EXPERTS_IMPLEMENTATION) -> None:
    """After the weights are in place: keep placeholders out of what is saved, and let the experts compute."""
    for module, name in _held(model):
        renew_placeholder(module, name)
        keep_placeholder_out(module, name)
    if find_experts(model):
        compute_by(model, implementation)


def is_in_nf4(model: nn.Module) -> bool:
    """Whether a model holds any of its weights in NF4."""
    return next(_held(model), None) is not None


def _held(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for name in list(module._parameters):
            if is_held(module, name):
                yield module, name


@dataclass
class PartBits:
    """What one part of a model is held in."""

    part: Part
    num_weights: int = 0
    num_in_4bit: int = 0
    num_bytes: int = 0
    """All of it, scales and what is left in 16 or 32 bits included."""
    num_bytes_4bit: int = 0
    worst_error: float = 0.0
    """The largest |W - W'| / |W| of any matrix (Frobenius norms); 0 where nothing is quantized."""

    @property
    def bits(self) -> float:
        """Bits a weight of what is in 4 bits, scales included."""
        return 8 * self.num_bytes_4bit / self.num_in_4bit if self.num_in_4bit else 0.0

    @property
    def share(self) -> float:
        """Share of the weights that are in 4 bits."""
        return self.num_in_4bit / self.num_weights


def audit_bits(model: nn.Module) -> list[PartBits]:
    """What a model that was to be quantized really holds, by part, with what other processes hold of its experts.

    Raises ModelError if routed experts are left in 16 bits, nothing is in 4 bits, or a matrix is badly represented.
    """
    part_of = Anatomy(model)
    found = {part: PartBits(part) for part in PARTS}
    seen = set()
    for owner, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is None or id(weight) in seen:  # tied to another
                continue
            seen.add(id(weight))
            line, shard = found[part_of(f"{owner}.{name}")], shard_of(module)
            num, num_bytes = weight.numel(), weight.numel() * weight.element_size()
            held = stored_weight(module, name)
            if isinstance(held, Nf4):
                num_bytes = held.num_bytes
            if shard:
                num, num_bytes = shard.of_all(num), shard.of_all(num_bytes)
            line.num_weights += num
            line.num_bytes += num_bytes
            if isinstance(held, Nf4):
                line.num_in_4bit += num
                line.num_bytes_4bit += num_bytes
                error = float(getattr(module, f"{name}_error").max())
                line.worst_error = max(line.worst_error, error) if error == error else error
    lines = [line for line in found.values() if line.num_weights]
    _check_bits(model, lines)
    return lines


def _check_bits(model: nn.Module, lines: list[PartBits]) -> None:
    left = [
        f"{block.name}.{name}"
        for block in find_experts(model)
        for name in block.parameters
        if not is_held(block.module, name)
    ]
    if left:
        raise ModelError(
            f"{len(left)} weights of routed experts are left in 16 bits, such as {left[0]}",
            hint="please report it with the model's name; lora trains it in 16 bits",
        )
    if not any(line.num_in_4bit for line in lines):
        raise ModelError("no weight of the model is in 4 bits", hint="train it with lora, in 16 bits")
    for line in lines:
        if not line.worst_error <= _MAX_ERROR:
            raise ModelError(
                f"{line.part}: a weight is {line.worst_error:.0%} off in 4 bits, so its numbers are not usable",
                hint="the checkpoint may be damaged; try lora, in 16 bits",
            )


def memory_of(model: nn.Module) -> int:
    """Bytes of a model's weights and buffers, a placeholder counting as what it takes."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type != "meta"
    }
    return sum(storages.values())
