"""A model without its weights: what it is made of, and what can be run of it on imagined tensors."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.moe.known import check_known
from dsr1_tune.moe.llama4 import adopt

_ASKS_FOR_NUMBERS = "Qwen4ExpTextQSAIndexer"


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
    """Put imagined tensors on the CPU in the places of those on meta; call it in FakeTensorMode.

    A layer that asks for numbers, token by token, is one afterwards that answers without.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones are kept, so that their numbers stay theirs
    for tensors in (part for module in model.modules() for part in (module._parameters, module._buffers)):
        for name, old in tensors.items():
            if old is not None:
                if id(old) not in made:
                    made[id(old)] = old, _imagined(old)
                tensors[name] = made[id(old)][1]
    for module in model.modules():
        if type(module).__name__ == _ASKS_FOR_NUMBERS:
            module.forward = partial(_choose_nothing, module)


def _choose_nothing(indexer: Any, x_BTD: Tensor, positions: Any, mask_B1TS: Tensor, cache: Any) -> Tensor:
    """What the attention of Qwen4 asks its indexer for, which keys each token sees (B, 1, T, S): none of them.

    It makes the tensors that last while the keys are chosen; no gradient goes back through a choice.
    """
    indexer.index_qk_proj(x_BTD)
    num_chosen = indexer.token_budget + indexer.compress_ratio - 1
    chosen_BTC = torch.full((*x_BTD.shape[:2], num_chosen), -1, dtype=torch.int32)
    num_keys = mask_B1TS.shape[-1]
    sees_BTS = torch.zeros((*x_BTD.shape[:2], num_keys + 1), dtype=torch.bool)
    places_BTC = torch.where(chosen_BTC >= 0, chosen_BTC, num_keys)
    return sees_BTS.scatter(-1, places_BTC, True)[..., :num_keys].unsqueeze(1)


def _imagined(old: Tensor) -> Tensor:
    is_placeholder = old.numel() > 1 and all(stride == 0 for stride in old.stride())
    new = torch.empty(1 if is_placeholder else old.shape, dtype=old.dtype, device="cpu")
    if is_placeholder:
        new = new.expand(old.shape)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
