"""How LoRA A and B on a linear layer begin, without touching the base's weight.

PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) begin with B0·A0 ≠ 0 and take it out of the weight. Here the
weight stays as it is and the update is B·A - B0·A0 instead: the same numbers, no weight is rounded, and what was
learned is the difference to the base that everybody has.
"""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn import functional

from dsr1_tune.config import Init


@torch.no_grad()
def begin(layer: LoraLayer, init: Init) -> None:
    """Set A and B of a layer that PEFT has begun with kaiming and zero."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if init == "gaussian":
        nn.init.normal_(a, std=1 / layer.r["default"])
    elif init == "orthogonal":
        started = _orthogonal(layer.r["default"], layer.in_features, layer.out_features)
        for weight, values in zip((a, b), started, strict=True):
            weight.copy_(values)
    elif init in ("pissa", "olora"):
        weight = layer.get_base_layer().weight.float()
        scale = layer.scaling["default"]
        principal = _pissa(weight, layer.r["default"], scale) if init == "pissa" else _olora(weight, layer.r["default"])
        a.copy_(principal[0])
        b.copy_(principal[1])
        for matrix, kind in ((layer.lora_A["default"], _WithBeginning), (layer.lora_B["default"], _WithoutBeginning)):
            # Not in the state dict: it follows from the base, and a resumed run finds it again.
            matrix.register_buffer("begun", matrix.weight.detach().clone(), persistent=False)
            matrix.__class__ = kind


def has_beginning(layer: nn.Module) -> bool:
    """Whether the layer applies B·A - B0·A0; B0 (out, R) and A0 (R, in) are their `begun`."""
    return isinstance(layer, LoraLayer) and any(isinstance(a, _WithBeginning) for a in layer.lora_A.values())


class _WithBeginning(nn.Linear):
    """A, with A0 below it: (..., in) → (..., 2R)."""

    begun: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """What the optimizer moves comes first."""
        return torch.cat([functional.linear(x, self.weight), functional.linear(x, self.begun)], dim=-1)


class _WithoutBeginning(nn.Linear):
    """[B, -B0]: (..., 2R) → (..., out)."""

    begun: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """The difference is taken here, in the float32 of A and B."""
        now, begun = h.chunk(2, dim=-1)
        return functional.linear(now, self.weight) - functional.linear(begun, self.begun)


def _pissa(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """The principal part of the weight, (R, in) and (out, R)."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root.unsqueeze(1) * vh[:rank], u[:, :rank] * root


def _olora(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The first directions of the weight's QR decomposition, (R, in) and (out, R)."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def _orthogonal(rank: int, num_in: int, num_out: int) -> tuple[Tensor, Tensor]:
    """A and B in complementary subspaces, so that B·A = 0 though neither is; as PEFT draws them."""
    q, _ = torch.linalg.qr(torch.randn(rank, rank))
    a = torch.randn(num_in, rank // 2).mm(q[0::2]).T / 10
    b = torch.randn(rank // 2, num_out).T.mm(q[1::2]) / 10
    return a, b
