"""Training computes in the formats that the model computes in by itself, as evaluation and serving do.

Autocast would round DeepSeek's routers, which score experts in float32, to 16 bits, and tokens would be trained on
other experts than they are sent to ever after; indexers and states of linear attention likewise. All that needs
autocast are an adapter's A and B, which are float32 to be trained and not to be multiplied in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn


class OwnPrecision:
    """Until `close`, autocast reaches nothing of a model below its head but the products of its adapter."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._undo: list[Callable[[], None]] = []
        device = model.device.type
        self._compute_in(model.get_decoder(), partial(torch.autocast, device, enabled=False))
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for side in (*layer.lora_A.values(), *layer.lora_B.values()):
                    self._compute_in(side, partial(torch.autocast, device, dtype))

    def _compute_in(self, module: nn.Module, surroundings: Callable[[], Any]) -> None:
        own, compute = vars(module).get("forward"), module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with surroundings():
                return compute(*args, **kwargs)

        module.forward = forward
        self._undo.append(partial(_put_back, module, own))

    def close(self) -> None:
        """Leave the model as it was."""
        while self._undo:
            self._undo.pop()()


def _put_back(module: Any, own: Any) -> None:
    del module.forward
    if own is not None:
        module.forward = own
