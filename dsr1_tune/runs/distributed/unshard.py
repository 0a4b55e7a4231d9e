"""Weights that processes share out between them (FSDP2): a model made whole again when its training is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as it is without being shared out; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def number_formats(model: nn.Module) -> dict[str, torch.dtype]:
    """The format of each weight: while weights are shared out, accelerate holds the trained ones in float32."""
    return {name: weight.dtype for name, weight in model.named_parameters(remove_duplicate=False)}


def unshard(model: nn.Module, formats: Mapping[str, torch.dtype]) -> None:
    """Give every process all weights again, in their `formats`, and take away what FSDP2 has put around the layers.

    So each process can compute and save as if it were alone. A model that is whole is left as it is.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return
    whole: dict[int, nn.Parameter] = {}  # by the shared-out one, as tied weights are one
    for prefix, module in model.named_modules():
        if isinstance(module, FSDPModule):
            module.reshard()
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in whole:
                tensor = whole_tensor(weight.detach()).to(formats[f"{prefix}.{name}" if prefix else name])
                whole[id(weight)] = nn.Parameter(tensor, requires_grad=weight.requires_grad)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            module._parameters[name] = whole[id(weight)]
        _take_off(module)


def _take_off(module: nn.Module) -> None:
    """Undo what `fully_shard` did to a module; torch has no function for it."""
    forward: tuple[dict[int, Any], ...] = (module._forward_pre_hooks, module._forward_hooks)
    for kind in (*forward, module._state_dict_pre_hooks, module._load_state_dict_pre_hooks):
        for number, hook in list(kind.items()):
            hook = getattr(hook, "hook", hook)  # of a module's state dict, wrapped
            if str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp"):
                del kind[number]
    if isinstance(module, FSDPModule):
        # fully_shard has made its class one of two parents: FSDPModule and what it was.
        module.__class__ = type(module).__bases__[1]
        vars(module).pop("generate", None)  # transformers' detour through FSDP
