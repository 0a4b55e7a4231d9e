"""A model that is larger than the memory: each layer's weights are read when it is reached, and let go after it.

For looking at a model now and then, not for talking to it: every forward pass reads all of it once.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.models.load import Loaded, Located, pick_device
from dsr1_tune.models.meta import layer_stack
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.moe.llama4 import adopt


def load_streamed(located: Located, read: Callable[[str], Tensor], layout: Layout) -> Loaded:
    """The model of `located` over the stored tensors that `read` gives, in float32, in the memory of its largest layer.

    Adapters go onto it as onto any model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(deepcopy(located.config), dtype=torch.float32)
    adopt(model)
    model.eval().requires_grad_(False)
    device = pick_device()
    places = _places(model, layout)
    for place in places:
        place.clear(device)
    for unit, prefix in _units(model):
        own = [place for place in places if place.parameter == prefix or place.parameter.startswith(f"{prefix}.")]
        fill, clear = _hooks(own, read, layout, device)
        unit.register_forward_pre_hook(fill)
        unit.register_forward_hook(clear, always_call=True)
    model.to(device)  # what is computed rather than stored, such as rotary frequencies
    return Loaded(model, located.tokenizer, located.name, located.revision)


@dataclass(frozen=True)
class _Place:
    """Where a stored parameter or buffer belongs."""

    owner: nn.Module
    leaf: str
    parameter: str
    """Its name in the model."""
    stored_as: str
    """The parameter that is stored: another one where the two are tied."""
    shape: tuple[int, ...]

    def put(self, tensor: Tensor) -> None:
        if self.leaf in self.owner._parameters:
            self.owner._parameters[self.leaf] = nn.Parameter(tensor, requires_grad=False)
        else:
            self.owner._buffers[self.leaf] = tensor

    def clear(self, device: torch.device) -> None:
        """Put a tensor of the same shape there that takes no memory, so that adapters find what they look for.

        Buffers are small, and a copy of them must be one that can be written to.
        """
        is_weight = self.leaf in self.owner._parameters
        self.put(torch.zeros((), device=device).expand(self.shape) if is_weight else torch.zeros(self.shape).to(device))


def _places(model: Any, layout: Layout) -> list[_Place]:
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    found = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        stored_as = name if layout.pieces_of(name) else tied.get(name, "")
        if layout.pieces_of(stored_as):
            found.append(_Place(model.get_submodule(owner), leaf, name, stored_as, tuple(tensor.shape)))
    return found


def _units(model: Any) -> list[tuple[nn.Module, str]]:
    """What is held in memory at a time: the decoder layers, and the modules outside of them that have weights."""
    stack = layer_stack(model)
    layers = [(layer, f"{stack}.{place}") for place, layer in enumerate(model.get_submodule(stack))]
    others = [
        (module, name)
        for name, module in model.named_modules()
        if not name.startswith(f"{stack}.") and next(module.parameters(recurse=False), None) is not None
    ]
    return layers + others


def largest_unit(model: Any) -> int:
    """The number of weights that are held at a time at most; of a model without weights, too."""
    return max(sum(weight.numel() for weight in unit.parameters()) for unit, _ in _units(model))


def _hooks(
    places: list[_Place], read: Callable[[str], Tensor], layout: Layout, device: torch.device
) -> tuple[Callable[..., None], Callable[..., None]]:
    """What fills `places` before a forward pass, and clears them behind it.

    Closures: PEFT copies modules with their hooks, and of a partial it would copy the places, too.
    """

    def fill(module: nn.Module, arguments: Any) -> None:
        for place in places:
            tensor = torch.empty(place.shape)
            for piece in layout.pieces_of(place.stored_as):
                piece.put(read(piece.stored), tensor)
            place.put(tensor.to(device))

    def clear(module: nn.Module, arguments: Any, output: Any) -> None:
        for place in places:
            place.clear(device)

    return fill, clear
