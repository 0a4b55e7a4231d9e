"""Which linear layers an update on them would not reach the model's output from: they get none, and are named.

The model of a config, without its weights, runs once on imagined tensors. A layer that is not called there, or whose
output leads to no logit but through a choice (the indexer of sparse attention picks keys; picking has no gradient),
would be trained in vain. Neither would one of which plain PEFT would lose the update when it loads the adapter.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dsr1_tune.models.meta import imagine, meta_model
from dsr1_tune.moe.anatomy import find_experts, is_plain_linear, plain_name
from dsr1_tune.moe.past import read_past

NO_GRADIENT = "no gradient reaches it"
READ_PAST = "its weight is read past it"
RENAMED = "PEFT would load its update under another name"
_INDEXERS = {"indexer", "indexers"}
_SHORT, _LONG = 8, 160
"""Tokens of the two runs: the most compressed attention begins with a block of 128, and few layers need that long."""
_NOT_OF_THE_MODEL = {
    "quantization_config",
    "_name_or_path",
    "transformers_version",
    "dtype",
    "use_cache",
    "architectures",
}
_KNOWN: dict[str, dict[str, str]] = {}


def left_out(model: nn.Module) -> dict[str, str]:
    """The linear layers that can have no update, by their full names, with the reason for each.

    `model` may lack its weights or have an adapter; a model of no known config is told by its modules alone.
    """
    linears = {plain_name(name): module for name, module in model.named_modules() if _is_base_linear(name, module)}
    reasons = {
        name: f"{type(module).__name__} computes in its own way"
        for name, module in linears.items()
        if not is_plain_linear(module)
    }
    reasons |= {name: NO_GRADIENT for name in linears if _INDEXERS & set(name.split("."))}
    if hasattr(config := getattr(model, "config", None), "to_dict"):
        for name, reason in _of_config(config).items():
            reasons.setdefault(name, reason)
    return {name: reasons[name] for name in linears if name in reasons}


def as_lines(reasons: Mapping[str, str]) -> list[str]:
    """A line for each kind of layer, over all layers of the stack: `model.layers.*.self_attn.indexer.wk (2): ...`."""
    kinds = Counter((re.sub(r"\.\d+(?=\.|$)", ".*", name), reason) for name, reason in reasons.items())
    return [f"{name} ({number}): {reason}, left out" for (name, reason), number in kinds.items()]


def _is_base_linear(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and ".lora_" not in name


def _of_config(config: Any) -> dict[str, str]:
    """What is left out of the model of a config; each is looked at once."""
    tree = {name: value for name, value in config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
    key = json.dumps(tree, sort_keys=True, default=str)
    if key not in _KNOWN:
        plain = deepcopy(config)
        if hasattr(plain, "quantization_config"):
            del plain.quantization_config
        with torch.random.fork_rng(devices=[]):
            _KNOWN[key] = _look(meta_model(plain))
    return _KNOWN[key]


def _look(model: Any) -> dict[str, str]:
    past = read_past(model)
    linears = {name for name, module in model.named_modules() if is_plain_linear(module)}
    reasons = dict.fromkeys(_renamed(model, sorted(linears)), RENAMED) | dict.fromkeys(past, READ_PAST)
    unreached = _unreached(model, linears - past, _SHORT)
    if any(not _INDEXERS & set(name.split(".")) for name in unreached):
        unreached &= _unreached(model, unreached, _LONG)
    return dict.fromkeys(unreached, NO_GRADIENT) | reasons


def _renamed(model: Any, names: list[str]) -> set[str]:
    """Those of the linear layers whose A PEFT would look for elsewhere: a family's old names are put right by patterns,
    and some fit new names too.
    """
    keys = {f"base_model.model.{name}.lora_A.weight": name for name in names}
    state = {key: torch.empty(1, 1, device="meta") for key in keys}
    found = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(target_modules=names), state)
    return {name for key, name in keys.items() if key not in found}


def _unreached(model: Any, names: set[str], num_tokens: int) -> set[str]:
    """Those of the linear layers whose output leads to no logit; empty where the model cannot be run so."""
    model.requires_grad_(False).eval()
    put_in: dict[str, list[Tensor]] = {name: [] for name in names}
    hooks = [model.get_submodule(name).register_forward_hook(_adding(into)) for name, into in put_in.items()]
    experts = [block.module for block in find_experts(model)]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            imagine(model)
            for module in experts:  # whom they answer depends on numbers
                module.forward = _as_it_came
            ids_BT = torch.zeros(1, num_tokens, dtype=torch.long)
            out = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False)
            several = [(name, one) for name, ones in put_in.items() for one in ones]
            loss = out.logits.float().sum()
            grads = torch.autograd.grad(loss, [one for _, one in several], allow_unused=True)
    except Exception:  # a family whose forward asks for numbers, which are imagined
        return set()
    finally:
        for hook in hooks:
            hook.remove()
        for module in experts:
            vars(module).pop("forward", None)
    return names - {name for (name, _), grad in zip(several, grads, strict=True) if grad is not None}


def _adding(into: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that adds to a layer's output what a gradient is asked of."""

    def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        into.append(out.new_zeros((), requires_grad=True))
        return out + into[-1]

    return add


def _as_it_came(x_TD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x_TD.clone()
