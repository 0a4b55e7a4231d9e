"""LoRA's A and B on experts that several processes share out: begun, loaded and saved as one process would do it.

In files they are whole, in PEFT's packing; each process holds those of its own experts, in the same packing.

Letters: E experts of the layer, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, distributed, nn

from dsr1_tune.moe.expert_shard import ExpertShard, shard_of


@dataclass(frozen=True)
class SharedFactor:
    """A (E·R, in) or B (out, R·E) of one layer's experts, of which this process holds those of its own experts."""

    parameter: nn.Parameter
    shard: ExpertShard
    is_b: bool

    def cut(self, whole: Tensor) -> Tensor:
        """What of all experts' factor, or of something of its shape, is for those held here."""
        mine = self.shard.mine
        return self._packed(self._by_expert(whole, self.shard.num_experts)[mine.start : mine.stop])

    def gather(self, mine: Tensor) -> Tensor | None:
        """All processes' parts put together, on the CPU, in the first process; None in the others.

        `mine` is this process's factor, or something of its shape, such as a gradient's mean.
        """
        parallel, sizes = self.shard.parallel, [end - begin for begin, end in pairwise(self.shard.bounds)]
        held = self._by_expert(mine.detach().cpu(), len(self.shard.mine))
        part = held.new_zeros(max(sizes), *held.shape[1:])
        part[: len(held)] = held
        parts = [torch.empty_like(part) for _ in sizes] if parallel.rank == 0 else None
        distributed.gather(part, parts)
        return parts and self._packed(torch.cat([one[:size] for one, size in zip(parts, sizes, strict=True)]))

    def _by_expert(self, packed: Tensor, num_experts: int) -> Tensor:
        """(E, R, in) or (E, out, R)."""
        if self.is_b:
            return packed.view(len(packed), -1, num_experts).permute(2, 0, 1)
        return packed.view(num_experts, -1, packed.shape[1])

    def _packed(self, by_expert: Tensor) -> Tensor:
        """As PEFT packs A, expert by expert, and B, rank by rank; memory of its own."""
        packed = by_expert.permute(1, 2, 0) if self.is_b else by_expert
        return packed.flatten(1).clone() if self.is_b else packed.flatten(0, 1).clone()


def find_shared(model: nn.Module) -> list[SharedFactor]:
    """Every A and B on experts that are shared out, in the same order in all processes."""
    found = []
    for module in model.modules():
        shard = shard_of(module.get_base_layer()) if isinstance(module, ParamWrapper) else None
        if shard:
            both = ((module.lora_A, False), (module.lora_B, True))
            found += [SharedFactor(one.weight, shard, is_b) for by_name, is_b in both for one in by_name.values()]
    return found


def shards_by_parameter(model: nn.Module) -> dict[int, ExpertShard]:
    """Of every parameter that is shared out, by its id, which experts of it are held here."""
    found = {id(factor.parameter): factor.shard for factor in find_shared(model)}
    for module in model.modules():
        if shard := shard_of(module):
            found |= {id(parameter): shard for parameter in module.parameters(recurse=False)}
    return found


@contextmanager
def sharing_factors() -> Iterator[None]:
    """While PEFT puts LoRA on experts that are shared out: drawn for all experts as one process would, then cut.

    So the beginning is the same in however many processes. What is loaded into them later is cut too.
    """
    update_layer = ParamWrapper.update_layer

    def update_and_cut(wrapper: ParamWrapper, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        shard = shard_of(wrapper.get_base_layer())
        if shard is None:
            update_layer(wrapper, adapter_name, *args, **kwargs)
            return
        num_held, wrapper.num_experts = wrapper.num_experts, shard.num_experts
        update_layer(wrapper, adapter_name, *args, **kwargs)
        wrapper.num_experts = num_held
        if num_held == 1:
            wrapper.get_delta_weight = partial(_update_of_one, wrapper)
        for by_name, is_b in ((wrapper.lora_A, False), (wrapper.lora_B, True)):
            linear = by_name[adapter_name]
            factor = SharedFactor(linear.weight, shard, is_b)
            linear.weight.data = factor.cut(linear.weight.data)
            linear.register_load_state_dict_pre_hook(partial(_cut_loaded, factor))

    ParamWrapper.update_layer = update_and_cut
    try:
        yield
    finally:
        ParamWrapper.update_layer = update_layer


def _update_of_one(wrapper: ParamWrapper, adapter_name: str) -> Tensor:
    """The update of a single expert, which PEFT would take for a layer's that is stored (out, in)."""
    update_OI = wrapper.lora_B[adapter_name].weight @ wrapper.lora_A[adapter_name].weight
    update = update_OI if wrapper._did_swap_in_out_features else update_OI.t()
    weight = wrapper.get_param()
    return (update.unsqueeze(0) * wrapper.scaling[adapter_name]).to(weight.device, weight.dtype)


def _cut_loaded(factor: SharedFactor, linear: nn.Linear, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    whole = state.get(f"{prefix}weight")
    if whole is not None and whole.shape != linear.weight.shape:
        state[f"{prefix}weight"] = factor.cut(whole)


@contextmanager
def whole_factors(model: nn.Module) -> Iterator[None]:
    """Inside, the first process's model has the A and B of all experts, on the CPU, to be saved.

    Every process must come here at the same time.
    """
    shared = find_shared(model)
    held = [factor.parameter.data for factor in shared]
    for factor in shared:
        whole = factor.gather(factor.parameter.data)
        if whole is not None:
            factor.parameter.data = whole
    try:
        yield
    finally:
        for factor, mine in zip(shared, held, strict=True):
            factor.parameter.data = mine
