"""A model without its weights: what it is made of, and what can be run of it on imagined tensors."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.moe.known import check_known
from dsr1_tune.moe.llama4 import adopt


def meta_model(config: Any) -> Any:
    """The model of a transformers config without its weights, to see what it is made of before any are loaded.

    Raises ModelError for a mixture whose experts are not known.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config))
    adopt(model)
    check_known(model)
    return model


def layer_stack(model: Any) -> str:
    """The name of the list that holds the model's decoder layers."""
    number = model.config.num_hidden_layers
    return next(
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == number
    )


def imagine(model: nn.Module) -> None:
    """Put imagined tensors on the CPU in the places of those on meta; call it in FakeTensorMode."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones are kept, so that their numbers stay theirs
    for tensors in (part for module in model.modules() for part in (module._parameters, module._buffers)):
        for name, old in tensors.items():
            if old is not None:
                if id(old) not in made:
                    made[id(old)] = old, _imagined(old)
                tensors[name] = made[id(old)][1]


def _imagined(old: Tensor) -> Tensor:
    is_placeholder = old.numel() > 1 and all(stride == 0 for stride in old.stride())
    new = torch.empty(1 if is_placeholder else old.shape, dtype=old.dtype, device="cpu")
    if is_placeholder:
        new = new.expand(old.shape)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
