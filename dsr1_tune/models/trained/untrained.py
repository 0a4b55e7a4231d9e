"""Layers of an adapter that nothing was learned in, taken out of it: an update of zero says that they were trained.

What values keep from a layer shows only when training is over: a gate that is zero in the base, a part of attention
that the texts are too short for.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn

from dsr1_tune.moe.anatomy import plain_name


def take_out(model: nn.Module, names: Iterable[str]) -> None:
    """Remove the updates on the linear layers of these full names, and name in the adapter's config those that stay."""
    peft_model = next(module for module in model.modules() if isinstance(module, PeftModel))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    gone = {plain_name(name) + _weight_of(layers[name]) for name in names}
    stay = {plain_name(name) + _weight_of(layer) for name, layer in layers.items()} - gone
    config = peft_model.peft_config["default"]
    config.target_modules = _without(config.target_modules, gone, stay)
    if config.target_parameters:
        config.target_parameters = sorted(_without(config.target_parameters, gone, stay)) or None
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layers[name].get_base_layer())


def _weight_of(layer: LoraLayer) -> str:
    """What stands behind the layer's name where PEFT is told of a parameter."""
    return f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else ""


def _without(targets: Iterable[str], gone: set[str], stay: set[str]) -> set[str]:
    """The targets, of those that hit what is gone the full names of what stays."""
    found: set[str] = set()
    for target in targets:
        hit = {name for name in gone | stay if name == target or name.endswith(f".{target}")}
        found |= hit & stay if hit & gone else {target}
    return found
