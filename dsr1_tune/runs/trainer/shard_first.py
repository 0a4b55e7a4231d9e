"""Under FSDP2 the trained weights are shared out before they become float32, not after.

accelerate makes them float32 first: then every GPU holds for a moment all of what it is to hold an N-th of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import accelerator as accelerates
from torch import nn
from torch.distributed.tensor import DTensor


def shard_first(prepare: Callable[..., Any]) -> Callable[..., Any]:
    """accelerate's `prepare` of a model for FSDP2, by which each process makes its own part of the weights float32."""

    def prepared(*args: Any, **kwargs: Any) -> Any:
        share_out = accelerates.fsdp2_prepare_model

        def share_out_first(accelerator: Any, model: nn.Module) -> nn.Module:
            own = accelerator.state._mixed_precision
            accelerator.state._mixed_precision = "no"  # of all that is done there, it makes weights float32
            try:
                model = share_out(accelerator, model)
            finally:
                accelerator.state._mixed_precision = own
            to_float32(model)
            return model

        accelerates.fsdp2_prepare_model = share_out_first
        try:
            return prepare(*args, **kwargs)
        finally:
            accelerates.fsdp2_prepare_model = share_out

    return prepared


def to_float32(model: nn.Module) -> None:
    """Make this process's part of every trained weight float32; tied ones stay one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if isinstance(weight, DTensor) and weight.requires_grad and weight.dtype != torch.float32:
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(weight.detach().to(torch.float32))
                module._parameters[name] = made[id(weight)]
