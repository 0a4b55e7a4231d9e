"""Low-rank updates on fused routed experts, applied by grouped products without ever forming the update.

PEFT's ParamWrapper builds W + s·B·A for all experts on every forward and keeps it for the backward. Here the same
parameters, owned by the same ParamWrapper (so adapters save and load as ordinary PEFT ones), are applied to the routed
rows: sort them by expert, then `y = x Wᵀ + s (x Aᵀ) Bᵀ` group by group. One autograd function spans the whole layer,
saves its input, one activation and two slivers of width R, and gives every gradient by grouped products.

Letters: T tokens, E experts, K chosen per token, S = T·K routed rows, D model width, I expert width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dsr1_tune.moe.expert_parallel import by_their_holders
from dsr1_tune.moe.expert_rows import RoutedRows, UnpackedLora, as_out_in
from dsr1_tune.moe.expert_shard import shard_of
from dsr1_tune.moe.llama4 import InOut, Llama4Experts
from dsr1_tune.quant.nf4 import QuantizedWeight, stored_weight

GateFunction = Callable[[Tensor], Tensor]

BY_ROWS = "by_rows"
"""The name by which transformers knows `plain_experts`."""


def use_grouped_products(model: nn.Module) -> int:
    """Apply the LoRA on fused experts and on wrapped linear weights without forming it; returns how many layers do.

    Call it after PEFT has added or loaded the adapter. Layers it does not know are left to PEFT's own way, which is
    slow but right.
    """
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, ParamWrapper)}
    switched = 0
    for name, wrapper in wrappers.items():
        base = wrapper.get_base_layer()
        inside_another = name.endswith(".base_layer") and name.removesuffix(".base_layer") in wrappers
        if type(wrapper) is not ParamWrapper:  # switched before
            continue
        if isinstance(base, nn.Linear) and wrapper.parameter_name == "weight":
            wrapper.__class__ = LinearParamLora
            switched += 1
        elif not inside_another and is_known_layout(base):
            wrapper.__class__ = GroupedExpertLora
            switched += 1
    return switched


def is_known_layout(experts: nn.Module) -> bool:
    """Fused experts as transformers' `use_experts_implementation` declares them, without a norm behind each expert."""
    return hasattr(experts, "is_transposed") and not getattr(experts, "has_post_expert_norm", False)


class LinearParamLora(ParamWrapper):
    """PEFT's wrapper of a linear layer's weight, applied as `x Wᵀ + s (x Aᵀ) Bᵀ`."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Any leading shape, last dimension the layer's input width."""
        adapter = _single_active(self)
        if adapter is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        lora_a, lora_b = self.lora_A[adapter], self.lora_B[adapter]
        update = lora_b(lora_a(self.lora_dropout[adapter](x.to(lora_a.weight.dtype))))
        y = self.base_layer(x)
        return y + (update * self.scaling[adapter]).to(y.dtype)


class GroupedExpertLora(ParamWrapper):
    """PEFT's (outermost) wrapper of a fused experts module, applied by grouped products."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x` (T, D) with the router's choice (T, K) and weights (T, K), as every fused experts module takes them."""
        adapter = _single_active(self)
        experts = self.get_base_layer()
        is_known = len(args) == 2 and not kwargs and not getattr(experts, "_is_expert_parallel", False)
        is_trained = any(weight.requires_grad for weight in experts.parameters(recurse=False))
        if adapter is None or not is_known or is_trained:
            return super().forward(x, *args, **kwargs)
        index_TK, weight_TK = args
        updates: dict[str, PackedLora] = {}
        wrapper: nn.Module = self
        while isinstance(wrapper, ParamWrapper):
            updates[wrapper.parameter_name] = PackedLora(
                wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight, wrapper.scaling[adapter]
            )
            wrapper = wrapper.base_layer
        if isinstance(experts, Llama4Experts):
            updates = {name: update.transposed(experts.down_proj.shape[0]) for name, update in updates.items()}
            compute = partial(apply_experts, InOut(experts), updates=updates)
            return experts.weigh_first(compute, x, index_TK, weight_TK)
        return apply_experts(experts, x, index_TK, weight_TK, updates)


# PEFT knows its wrappers by this name when it adds a further adapter.
LinearParamLora.__name__ = GroupedExpertLora.__name__ = ParamWrapper.__name__


def _single_active(wrapper: ParamWrapper) -> str | None:
    """The one adapter to apply to every parameter of this layer, or None where PEFT's own way must decide."""
    adapters = wrapper.active_adapters
    if wrapper.disable_adapters or wrapper.merged or len(adapters) != 1:
        return None
    layer: nn.Module = wrapper
    while isinstance(layer, ParamWrapper):
        if adapters[0] not in layer.lora_A or layer.merged:
            return None
        layer = layer.base_layer
    return str(adapters[0])


@dataclass(frozen=True)
class PackedLora:
    """LoRA A and B as PEFT packs them for E experts: A (E·R, in) expert-major, B (out, R·E) rank-major."""

    packed_a: Tensor | None = None
    packed_b: Tensor | None = None
    scale: float = 0.0

    def transposed(self, num_experts: int) -> PackedLora:
        """The same update of (E, in, out) weights, which PEFT took for (E, out, in): A and B have changed places."""
        assert self.packed_a is not None and self.packed_b is not None
        a_ERO = self.packed_a.view(num_experts, -1, self.packed_a.shape[1])
        b_IRE = self.packed_b.view(len(self.packed_b), -1, num_experts)
        return PackedLora(b_IRE.permute(2, 1, 0).flatten(0, 1), a_ERO.permute(2, 1, 0).flatten(1), self.scale)


def apply_experts(
    experts: Any, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor, updates: dict[str, PackedLora]
) -> Tensor:
    """The experts' output (T, D) for the router's choice, with low-rank updates on the named fused weights."""
    up_name = "gate_up_proj" if experts.has_gate else "up_proj"
    up, down = updates.get(up_name, PackedLora()), updates.get("down_proj", PackedLora())
    layer = _Layer(
        gate=experts._apply_gate if experts.has_gate else experts.act_fn,
        is_transposed=experts.is_transposed,
        up_bias=getattr(experts, f"{up_name}_bias", None),
        down_bias=experts.down_proj_bias if experts.has_bias else None,
        up_scale=up.scale,
        down_scale=down.scale,
    )
    weights = stored_weight(experts, up_name), stored_weight(experts, "down_proj")
    loras = up.packed_a, up.packed_b, down.packed_a, down.packed_b
    shard = shard_of(experts)

    def compute(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = _ExpertsWithUpdates.apply(layer, x, index, weight, *weights, *loras)
        return out

    # In the weights' own dtype, as transformers' experts compute under autocast too.
    with torch.autocast(x_TD.device.type, enabled=False):
        if shard is None:
            return compute(x_TD, index_TK, weight_TK)
        rows_TD = x_TD.to(weights[0].dtype)
        return by_their_holders(shard, compute, rows_TD, index_TK, weight_TK).to(x_TD.dtype)


def plain_experts(experts: nn.Module, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The forward of frozen fused experts, held in fewer bits or shared out, without an update on them."""
    return apply_experts(experts, x_TD, index_TK, weight_TK, {})


ALL_EXPERTS_FUNCTIONS.register(BY_ROWS, plain_experts)


@dataclass(frozen=True)
class _Layer:
    """What a layer of experts does besides its products."""

    gate: GateFunction
    is_transposed: bool
    up_bias: Tensor | None
    down_bias: Tensor | None
    up_scale: float
    down_scale: float


class _ExpertsWithUpdates(torch.autograd.Function):
    """Dispatch → up product → gate → down product → combine, frozen weights, trainable LoRA A and B."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: _Layer,
        x_TD: Tensor,
        index_TK: Tensor,
        weight_TK: Tensor,
        up: Tensor | QuantizedWeight,
        down: Tensor | QuantizedWeight,
        *loras: Tensor | None,
    ) -> Tensor:
        up_a, up_b, down_a, down_b = loras
        rows = RoutedRows.sort(index_TK, num_experts=down.shape[0])
        up_lora = UnpackedLora.of(up_a, up_b, layer.up_scale, up, rows)
        down_lora = UnpackedLora.of(down_a, down_b, layer.down_scale, down, rows)

        x_PD = x_TD.to(up.dtype).index_select(0, rows.token_P)
        g, h_up = rows.linear(x_PD, as_out_in(up, layer.is_transposed), up_lora)
        if layer.up_bias is not None:
            g.add_(layer.up_bias.index_select(0, rows.expert_P))
        a = layer.gate(g)
        y_PD, h_down = rows.linear(a, as_out_in(down, layer.is_transposed), down_lora)
        if layer.down_bias is not None:
            y_PD.add_(layer.down_bias.index_select(0, rows.expert_P))

        ctx.layer, ctx.rows = layer, rows
        ctx.in_4bit = [weight if isinstance(weight, QuantizedWeight) else None for weight in (up, down)]
        up, down = (weight if isinstance(weight, Tensor) else None for weight in (up, down))
        ctx.save_for_backward(x_TD, weight_TK, up, down, *loras, g, h_up, h_down)
        return rows.combine(y_PD, weight_TK).to(x_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dout_TD = grads[0]
        x_TD, weight_TK, up, down, up_a, up_b, down_a, down_b, g, h_up, h_down = ctx.saved_tensors
        up, down = (held or saved for held, saved in zip(ctx.in_4bit, (up, down), strict=True))
        layer: _Layer = ctx.layer
        rows: RoutedRows = ctx.rows
        up_lora = UnpackedLora.of(up_a, up_b, layer.up_scale, up, rows)
        down_lora = UnpackedLora.of(down_a, down_b, layer.down_scale, down, rows)

        # The activation is cheap to compute again; keeping it would cost S·I numbers.
        with torch.enable_grad():
            g_leaf = g.detach().requires_grad_()
            a_graph = layer.gate(g_leaf)
        a = a_graph.detach()

        # The gate weight scales whole rows, so the products run on unscaled rows and the weight comes in on the
        # narrow side; the weight's own gradient is then <dy W, a> and the layer's output need not be kept.
        dy_PD = dout_TD.to(down.dtype).index_select(0, rows.token_P)
        weight_P1 = rows.pad_weights(weight_TK.to(down.dtype))
        da, d_down_a, d_down_b = rows.linear_backward(
            dy_PD, a, h_down, as_out_in(down, layer.is_transposed), down_lora, weight_P1
        )
        dweight_P = (da * a).sum(-1)
        if layer.down_bias is not None:
            dweight_P += (dy_PD * layer.down_bias.index_select(0, rows.expert_P)).sum(-1)
        del dy_PD
        dg = torch.autograd.grad(a_graph, g_leaf, da.mul_(weight_P1))[0]
        del da, a, a_graph, g_leaf

        x_PD = x_TD.to(up.dtype).index_select(0, rows.token_P) if up_lora else None
        dx_PD, d_up_a, d_up_b = rows.linear_backward(dg, x_PD, h_up, as_out_in(up, layer.is_transposed), up_lora)
        dx_TD = rows.sum_back(dx_PD).to(x_TD.dtype) if ctx.needs_input_grad[1] else None
        dweight_TK = rows.as_chosen(dweight_P).view_as(weight_TK).to(weight_TK.dtype)
        loras = ((d_up_a, up_a), (d_up_b, up_b), (d_down_a, down_a), (d_down_b, down_b))
        d_loras = (None if gradient is None else gradient.to(one.dtype) for gradient, one in loras)
        return None, dx_TD, None, dweight_TK if ctx.needs_input_grad[3] else None, None, None, *d_loras
