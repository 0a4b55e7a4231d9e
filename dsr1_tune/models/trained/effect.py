"""Whether low-rank updates change any weight of their base, in the number format that the base is held in.

Letters: E experts (1 for a linear layer), R rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from dsr1_tune.models.trained.lora_init import has_beginning
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_rows import as_out_in
from dsr1_tune.moe.selected_experts import ChosenLora
from dsr1_tune.quant.nf4 import QuantizedWeight, stored_weight

_PIECE = 2**22
_NOTHING = torch.finfo(torch.float32).eps / 2
_ROUNDING = 1e-4


@dataclass(frozen=True)
class LowRank:
    """The update s·B·A of one layer, and the weights W that it goes onto."""

    name: str
    """The full name of the layer, of single experts that of all."""
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    weight_EOI: Tensor | QuantizedWeight
    """A weight in 4 bits is what it is dequantized to."""
    scale: float
    experts: tuple[int, ...]
    """Which matrices of W the factors are for."""
    is_linear: bool
    """Whether it is on a linear layer, and not on routed experts."""
    is_relative: bool = False
    """Whether the update is s·(B·A - B0·A0), with A0 and B0 as they began."""

    def is_zero(self, begun: tuple[Tensor, Tensor] | None) -> bool:
        """Whether nothing is added to the weight of a linear layer: not in this number format, but at all."""
        if begun is None:
            return not self.lora_b.any()
        is_same = all(
            torch.equal(one.detach().to("cpu"), was) for one, was in zip((self.lora_a, self.lora_b), begun, strict=True)
        )
        if not is_same or self.is_relative:
            return is_same
        # Orthogonal A and B that are not zero, whose product is but for rounding.
        a, b = self.lora_a.detach(), self.lora_b.detach()
        return bool((b @ a).norm() < _ROUNDING * b.norm() * a.norm())

    def factors(self, lora_a: Tensor, lora_b: Tensor) -> tuple[Tensor, Tensor]:
        """A (E, R, in) and B (E, out, R) from how they are packed."""
        if lora_a.dim() == 3:
            return lora_a, lora_b
        # PEFT packs A expert by expert, and B rank by rank.
        num = len(self.experts)
        return lora_a.view(num, -1, lora_a.shape[1]), lora_b.view(len(lora_b), -1, num).permute(2, 0, 1)

    @torch.no_grad()
    def shows(self, begun: tuple[Tensor, Tensor] | None) -> bool:
        """Whether any weight is another than it was when A and B were as they have `begun` (None: when B was zero)."""
        now = self.factors(self.lora_a, self.lora_b)
        then = self.factors(*(factor.to(self.lora_a.device) for factor in begun)) if begun else None
        for place, number in enumerate(self.experts):
            weight_OI, (a_RI, b_OR) = self.weight_EOI[number], (factor[place] for factor in now)
            num_rows = max(1, _PIECE // weight_OI.shape[1])
            for first in range(0, len(weight_OI), num_rows):
                rows = slice(first, first + num_rows)
                delta = b_OR[rows].float() @ a_RI.float()
                if then:
                    delta -= then[1][place][rows].float() @ then[0][place].float()
                if _changes(weight_OI[rows], delta.mul_(self.scale)):
                    return True
        return False


def _changes(weight: Tensor, delta: Tensor) -> bool:
    """Whether the sum is rounded to anything but the weight.

    What is added to a zero always shows, but does nothing as long as it is lost beside the weights that are none.
    """
    exact = weight.float()
    is_something = ~(delta.abs() <= exact.abs().max() * _NOTHING)  # NaN is something
    return bool((is_something & ((exact + delta).to(weight.dtype) != weight)).any())


def low_rank_updates(model: nn.Module) -> Iterator[LowRank]:
    """Every low-rank update on a model's weights, of PEFT's layers and of single experts."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.lora_A:
            continue
        base, is_parameter = layer.get_base_layer(), isinstance(layer, ParamWrapper)
        if not is_parameter and not isinstance(base, nn.Linear):
            continue
        weight = stored_weight(base, layer.parameter_name if is_parameter else "weight")
        if isinstance(weight, Tensor) and weight.dim() == 2:
            weight = weight.unsqueeze(0)
        is_transposed = is_parameter and layer._param_ndim == 3 and not layer._did_swap_in_out_features
        yield LowRank(
            name,
            layer.lora_A["default"].weight,
            layer.lora_B["default"].weight,
            as_out_in(weight, is_transposed),
            layer.scaling["default"],
            tuple(range(layer.num_experts if is_parameter else 1)),
            isinstance(base, nn.Linear),
            has_beginning(layer),
        )
    for block in find_experts(model):
        chosen = getattr(block.module, "chosen", None)
        if not isinstance(chosen, ChosenLora):
            continue
        for name in chosen.lora_A:
            weight_EOI = as_out_in(getattr(block.module, name), block.is_transposed)
            factors = chosen.lora_A[name], chosen.lora_B[name]
            yield LowRank(block.name, *factors, weight_EOI, chosen.scale, chosen.numbers, is_linear=False)
