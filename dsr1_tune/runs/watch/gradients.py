"""The size of the gradient, in all and by part of the model, in one fused computation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.moe.anatomy import Anatomy


class GradientNorms:
    """L2 norms by group, taken before gradients are clipped and read once a step."""

    def __init__(self) -> None:
        self._parameters: list[nn.Parameter] = []
        self._groups: list[str] = []
        self._group_of: list[int] = []
        self._squares_G: Tensor | None = None

    @torch.no_grad()
    def measure(self, model: nn.Module, scale: float = 1.0) -> None:
        """Call it with complete gradients; `scale` is what float16's loss was multiplied by."""
        if not self._parameters:
            self._learn(model)
        found = [
            (weight.grad, group)
            for weight, group in zip(self._parameters, self._group_of, strict=True)
            if weight.grad is not None
        ]
        if not found:
            self._squares_G = None
            return
        # Of a weight that is shared out among processes each sums up its own part.
        is_shared_out = any(hasattr(gradient, "to_local") for gradient, _ in found)
        local = [_local(gradient) for gradient, _ in found]
        device = local[0].device
        norms = torch._foreach_norm(local, 2, dtype=torch.float32)
        norm_P = torch.stack([norm.to(device) for norm in norms]).double() / scale
        squares_G = torch.zeros(len(self._groups), dtype=torch.float64, device=device)
        squares_G.index_add_(0, torch.tensor([group for _, group in found], device=device), norm_P.square())
        if is_shared_out and torch.distributed.is_initialized():
            torch.distributed.all_reduce(squares_G)
        self._squares_G = squares_G

    def take(self) -> dict[str, float]:
        """The norms of the last measurement, by group; empty if there was none."""
        if self._squares_G is None:
            return {}
        norms = self._squares_G.sqrt().tolist()
        self._squares_G = None
        return dict(zip(self._groups, norms, strict=True))

    def _learn(self, model: nn.Module) -> None:
        part_of = Anatomy(model)
        trained = [(part_of(name), weight) for name, weight in model.named_parameters() if weight.requires_grad]
        self._groups = sorted({part for part, _ in trained})
        self._parameters = [weight for _, weight in trained]
        self._group_of = [self._groups.index(part) for part, _ in trained]


def _local(gradient: Any) -> Tensor:
    local: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return local.coalesce().values() if local.is_sparse else local
