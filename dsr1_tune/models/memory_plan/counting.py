"""The tensors of a model that would be trained, and the bytes that they, their gradients and their optimizer take."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.config import Esft, Schedule
from dsr1_tune.models.memory_plan.base import PlannedBase
from dsr1_tune.models.memory_plan.layers import alike_at_first, with_layers
from dsr1_tune.models.meta import layer_stack, meta_model
from dsr1_tune.moe.anatomy import find_experts, plain_name
from dsr1_tune.moe.expert_shard import most_held

Prepare = Callable[[Any], Any]


@dataclass(frozen=True)
class Held:
    """`count` tensors of a model that are alike."""

    shape: tuple[int, ...]
    itemsize: int
    """Bytes a number."""
    is_added: bool = False
    """Whether it belongs to an adapter."""
    is_trained: bool = False
    num_experts: int = 0
    """E of the layer whose routed experts it belongs to; 0 for what is no part of them."""
    is_placeholder: bool = False
    """Whether it has the memory of one number."""
    count: float = 1

    @property
    def numel(self) -> float:
        """The numbers of all of them."""
        return math.prod(self.shape) * self.count

    @property
    def num_bytes(self) -> float:
        """What all of them take."""
        return self.itemsize * (self.count if self.is_placeholder else self.numel)

    def of_process(self, number: int) -> Held:
        """As each of `number` processes holds it that share experts out: the one that holds the most of them."""
        if not self.num_experts:
            return self
        return replace(self, count=self.count * most_held(self.num_experts, number) / self.num_experts)


@dataclass(frozen=True)
class Counted:
    """All tensors of a model."""

    held: tuple[Held, ...]

    @property
    def weights(self) -> int:
        """Bytes of the model's own."""
        return round(sum(one.num_bytes for one in self.held if not one.is_added))

    @property
    def adapter(self) -> int:
        """Bytes of what was added."""
        return round(sum(one.num_bytes for one in self.held if one.is_added))

    @property
    def trained(self) -> tuple[Held, ...]:
        """Those that are trained."""
        return tuple(one for one in self.held if one.is_trained)

    def of_process(self, number: int) -> Counted:
        """What each of `number` processes holds that share experts out."""
        return Counted(tuple(one.of_process(number) for one in self.held))


def count(base: PlannedBase, prepare: Prepare, dtype: torch.dtype, is_whole: bool = False) -> Counted:
    """The tensors of the model that `prepare` makes of the base's; of layers that are alike one is made.

    `is_whole` makes every layer, for what is done to some layers by their numbers.
    """
    config, kinds = base.model.config, base.layer_kinds
    left_out = 0 if is_whole else alike_at_first(config, kinds)
    behind = kinds[left_out:]
    first = {kind: number for number, kind in reversed(list(enumerate(behind)))}
    number = len(kinds) if is_whole else max(max(first.values(), default=0) + 1, min(2, len(behind)))
    if number < len(kinds):
        config = with_layers(config, number, left_out)
    bare = meta_model(config).to(dtype)
    stack = layer_stack(bare)
    with torch.device("meta"):  # an adapter's A and B too
        model = prepare(bare)
    times: dict[int, int] = dict.fromkeys(range(number), 1)
    if number < len(kinds):
        of_kind = Counter(kinds)
        times = {place: of_kind[behind[place]] if first[behind[place]] == place else 0 for place in range(number)}
    in_layer = re.compile(rf"{re.escape(stack)}\.(\d+)\.")
    held: Counter[Held] = Counter()
    for name, one in _tensors(model):
        found = in_layer.match(plain_name(name))
        held[one] += times[int(found[1])] if found else 1
    return Counted(tuple(replace(one, count=number) for one, number in held.items() if number))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Held]]:
    """Every tensor of a model once, by its name."""
    num_experts = {plain_name(block.name): block.num_experts for block in find_experts(model)}
    seen: dict[int, Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in seen:
            continue
        seen[id(tensor)] = tensor
        owner = re.sub(r"\.lora_\w+(\..*)?$", "", plain_name(name)).rstrip(".")
        yield (
            name,
            Held(
                shape=tuple(tensor.shape),
                itemsize=tensor.element_size(),
                is_added=".lora_" in name or ".modules_to_save." in name,
                is_trained=tensor.requires_grad,
                num_experts=num_experts.get(owner, num_experts.get(owner.rpartition(".")[0], 0)),
                is_placeholder=tensor.numel() > 1 and all(stride == 0 for stride in tensor.stride()),
            ),
        )


def trained_by_esft(base: PlannedBase, esft: Esft, rank: int, itemsize: int) -> tuple[Held, ...]:
    """The chosen experts: at most the share of them whose share of the gate weight is asked for."""
    held: Counter[Held] = Counter()
    for block in find_experts(base.model):
        chosen = math.ceil(esft.share * block.num_experts)
        for name in block.parameters:
            shape = tuple(getattr(block.module, name).shape)
            rows = (rank, shape[1] + shape[2])
            held[Held(shape[1:] if esft.method == "weights" else rows, itemsize, is_trained=True)] += chosen
    return tuple(replace(one, count=number) for one, number in held.items())


def bytes_of(held: Iterable[Held]) -> int:
    """Of all of these tensors, or of gradients for them."""
    return round(sum(one.num_bytes for one in held))


def optimizer_name(schedule: Schedule, is_paged: bool) -> str:
    """The optimizer; auto is paged 8-bit AdamW if `is_paged`, else AdamW."""
    if schedule.optimizer == "auto":
        return "paged_adamw_8bit" if is_paged else "adamw"
    return schedule.optimizer


def optimizer_bytes(trained: Iterable[Held], schedule: Schedule, is_paged: bool) -> tuple[int, int]:
    """(bytes of state, of temporaries) of the optimizer, as runs.trainer.optimizers builds it."""
    trained, name = list(trained), optimizer_name(schedule, is_paged)
    largest = max((math.prod(one.shape) for one in trained), default=0)
    if name == "adafactor":  # rows and columns in place of a second moment; an update at a time
        return round(sum(4 * _factored(one.shape) * one.count for one in trained)), 8 * largest
    if "8bit" in name:
        return round(sum(one.numel * (2.03 if math.prod(one.shape) >= 4096 else 8) for one in trained)), 0
    is_narrow = any(one.itemsize < 4 for one in trained)
    return round(8 * sum(one.numel for one in trained)), 20 * min(largest, 2**24) if is_narrow else 0


def _factored(shape: tuple[int, ...]) -> int:
    """Numbers of Adafactor's second moment: those of its rows and of its columns."""
    numel = math.prod(shape)
    return numel // shape[-1] + numel // shape[-2] if len(shape) > 1 else numel
