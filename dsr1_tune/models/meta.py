"""A model without its weights, and the stack of its layers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn


def meta_model(config: Any) -> Any:
    """The model of a transformers config without its weights, to see what it is made of before any are loaded."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(deepcopy(config))


def layer_stack(model: Any) -> str:
    """The name of the list that holds the model's decoder layers."""
    number = model.config.num_hidden_layers
    return next(
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == number
    )
