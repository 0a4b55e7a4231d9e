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
        # In complementary subspaces, so that B·A = 0 though neither is; as PEFT draws them.
        rank = layer.r["default"]
        q, _ = torch.linalg.qr(torch.randn(rank, rank))
        a.copy_(torch.randn(layer.in_features, rank // 2).mm(q[0::2]).T / 10)
        b.copy_(torch.randn(rank // 2, layer.out_features).T.mm(q[1::2]) / 10)
    elif init in ("pissa", "olora"):
        weight, rank = layer.get_base_layer().weight.float(), layer.r["default"]
        if init == "pissa":  # the principal part of the weight
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            root = (s[:rank] / layer.scaling["default"]).sqrt()
            a.copy_(root.unsqueeze(1) * vh[:rank])
            b.copy_(u[:, :rank] * root)
        else:  # the first directions of its QR decomposition
            q, r = torch.linalg.qr(weight)
            a.copy_(r[:rank])
            b.copy_(q[:, :rank])
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
