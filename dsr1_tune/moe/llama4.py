"""Llama-4's experts, made to be called as all other families' are: `adopt` puts modules of this file in their places.

transformers has each of them compute for every token, on inputs that are zero but for the chosen. Here the router says
whom it chose and what they count, as elsewhere, and the experts see their own rows alone. What is stored, and what PEFT
finds, stays the same.

Letters: T tokens, E experts, K chosen per token, S = T·K routed rows, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of experts: inputs (T, D), the choice (T, K) and its weights (T, K) → (T, D)."""

_BLOCK = "Llama4TextMoe"


def adopt(model: Any) -> None:
    """Make the mixtures of a Llama-4 callable as others are; nothing happens to another model, or a second time."""
    blocks = [module for module in model.modules() if type(module).__name__ == _BLOCK]
    computed = SimpleNamespace(_experts_implementation="grouped_mm")  # transformers lets its own config say nothing
    for block in blocks:
        block.__class__ = Llama4Block
        block.router.__class__ = Llama4Router
        block.experts.__class__ = Llama4Experts
        block.experts.config = computed
    if blocks and not hasattr(model, model.base_model_prefix):
        model.base_model_prefix = "model"  # what is below the head, which is asked of a model by this


def compute_by(model: Any, implementation: str) -> None:
    """Have a model's experts computed by an implementation that transformers knows, those of a Llama-4 too."""
    model.set_experts_implementation(implementation)
    for module in model.modules():
        if isinstance(module, Llama4Experts):
            module.config._experts_implementation = implementation


class Llama4Block(nn.Module):
    """A router, routed experts, and one that every token goes to."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(what a layer adds (T, D), the router's logits (T, E))."""
        x_TD = hidden.reshape(-1, hidden.shape[-1])
        logits_TE, weight_TK, index_TK = self.router(x_TD)
        return self.shared_expert(x_TD) + self.experts(x_TD, index_TK, weight_TK), logits_TE


class Llama4Router(nn.Linear):
    """The K largest logits are chosen, and count by their sigmoid."""

    def forward(self, x_TD: Tensor) -> Any:
        """As other families' routers do: (logits (T, E), weights of the chosen (T, K), the chosen (T, K))."""
        logits_TE = super().forward(x_TD)
        largest_TK, index_TK = torch.topk(logits_TE, self.top_k, dim=1)
        return logits_TE, largest_TK.float().sigmoid().to(logits_TE.dtype), index_TK


class Llama4Experts(nn.Module):
    """Fused experts; a choice's weight is a factor of what its expert is given, not of what it answers."""

    has_gate, has_bias, has_post_expert_norm, is_concatenated, _is_expert_parallel = True, False, False, True, False
    # What PEFT finds: transformers declares nothing of these experts, and PEFT takes them to be (E, out, in).
    is_transposed = False

    def forward(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """The experts' answers to their tokens, summed (T, D)."""
        compute = ALL_EXPERTS_FUNCTIONS.get_interface(self.config._experts_implementation, _by_all)
        return self.weigh_first(partial(compute, InOut(self)), x_TD, index_TK, weight_TK)

    @staticmethod
    def weigh_first(compute: Compute, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """`compute`, which weighs answers, on inputs that are weighed, with weights of 1."""
        x_SD = (x_TD.unsqueeze(1) * weight_TK.unsqueeze(2)).flatten(0, 1)
        y_SD = compute(x_SD, index_TK.reshape(-1, 1), torch.ones_like(weight_TK).view(-1, 1))
        return y_SD.view(*index_TK.shape, -1).sum(1)

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        out: Tensor = self.act_fn(gate) * up
        return out


def _by_all(experts: Any, x_SD: Tensor, index_S1: Tensor, weight_S1: Tensor) -> Tensor:
    """As transformers does it: every expert on all rows, which are zero where they are another's."""
    is_own_ES = torch.arange(experts.num_experts, device=x_SD.device).unsqueeze(1) == index_S1.T
    gate_up = torch.bmm(x_SD * is_own_ES.unsqueeze(2), experts.gate_up_proj)
    return torch.bmm(experts._apply_gate(gate_up), experts.down_proj).sum(0)


class InOut:
    """A module of these experts as it would be declared: its weights are (E, in, out)."""

    is_transposed = True

    def __init__(self, experts: Llama4Experts) -> None:
        self._experts = experts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._experts, name)
