"""Layers that are alike: of a deep model a few are looked at, and the others taken to be like them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from dsr1_tune.models.meta import layer_stack

_LONGEST_PERIOD = 4


def layer_kinds(model: nn.Module) -> tuple[Hashable, ...]:
    """What each of a model's decoder layers is: equal for those that are made alike."""
    config: Any = model.config
    stack = model.get_submodule(layer_stack(model))
    lists = [value for value in vars(config).values() if isinstance(value, list) and len(value) == len(stack)]
    return tuple(
        (
            tuple(str(value[number]) for value in lists),
            tuple((name, type(module).__name__) for name, module in layer.named_modules()),
            tuple((name, weight.shape) for name, weight in layer.named_parameters()),
        )
        for number, layer in enumerate(stack)
    )


def few_and_more(kinds: Sequence[Hashable]) -> tuple[int, int]:
    """(how many of the first layers to trace, how many a second time), which differ by layers as the others are.

    The layers begin with a few of their own kind and then repeat; of a long period its second half stands for all.
    """
    for period in range(1, len(kinds) // 2):
        head = max((n + 1 for n in range(len(kinds) - period) if kinds[n] != kinds[n + period]), default=0)
        if head + 2 * period < len(kinds) - 1 and head < len(kinds) // 2:
            few = max(head + period, 2) if period <= _LONGEST_PERIOD else head + (period + 1) // 2
            return few, few + period if period <= _LONGEST_PERIOD else head + period
    return min(_LONGEST_PERIOD, len(kinds)), min(_LONGEST_PERIOD + 2, len(kinds))


def alike_at_first(config: Any, kinds: Sequence[Hashable]) -> int:
    """How many of the first dense layers are more than one."""
    dense = int(getattr(config, "first_k_dense_replace", 0) or 0)
    return dense - 1 if 1 < dense < len(kinds) and len(set(kinds[:dense])) == 1 else 0


def with_layers(config: Any, number: int, left_out: int = 0) -> Any:
    """The config of the same model with `number` of its layers only, the first ones, or those behind `left_out` dense.

    What it lists for each layer is cut too.
    """
    before, short = config.num_hidden_layers, deepcopy(config)
    for name, value in vars(short).items():
        if isinstance(value, list) and len(value) == before and name not in ("architectures",):
            setattr(short, name, value[left_out : left_out + number])
    if left_out:
        short.first_k_dense_replace -= left_out
    short.num_hidden_layers = number
    return short
