"""Train some of a layer's fused experts, and pay for those alone.

A fused weight holds all experts of a layer, so autograd would give it a gradient, and the optimizer a state, for all of
them. Here it stays frozen. Each chosen expert has parameters of its own, which are views of its rows in the fused
weight: they take no further memory, and when the optimizer moves them the experts have moved. One autograd function per
projection gives their gradients and no others. LoRA A and B of the chosen experts are the other way to train them.

Letters: T tokens, E experts, N chosen to be trained, K experts per token, S = T·K routed rows, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import ExpertBlock, find_experts
from dsr1_tune.moe.expert_rows import RoutedRows, as_out_in
from dsr1_tune.moe.llama4 import compute_by

Chosen = Mapping[str, Sequence[int]]

IMPLEMENTATION = "chosen_experts"
_CHILD = "chosen"
_WHOLE = "train them with full and --set train.only=[routed_experts]"
_PROFILE = "profile the experts of this model: dsr1-tune experts FILE --model ..."


def train_weights(model: nn.Module, chosen: Chosen) -> None:
    """Freeze `model` but for the experts in `chosen`, numbers by the name of their layer's experts module.

    Raises ModelError for a layer or an expert that the model does not have, or whose experts cannot be trained so.
    """
    _train(model, chosen, ChosenWeights)


def train_lora(model: nn.Module, chosen: Chosen, rank: int, scale: float) -> None:
    """Freeze `model` and give the experts in `chosen` LoRA A and B, their updates scaled by `scale`.

    Raises ModelError as `train_weights` does.
    """
    _train(model, chosen, lambda block, numbers: ChosenLora(block, numbers, rank, scale))


def _train(model: nn.Module, chosen: Chosen, make: Callable[[ExpertBlock, Sequence[int]], nn.Module]) -> None:
    blocks = check_chosen(model, chosen)
    model.requires_grad_(False)
    for block in blocks:
        setattr(block.module, _CHILD, make(block, chosen[block.name]))
    _switch(model, blocks)


def trained_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by names that tell layer, expert (for weights) and parameter."""
    return {
        f"{block.name}.{name}": parameter
        for block in find_experts(model)
        for name, parameter in getattr(block.module, _CHILD, nn.Module()).named_parameters()
    }


def are_chosen_rows(name: str) -> bool:
    """Whether the parameter of this name is a chosen expert's, a part of a fused weight that is named as well."""
    return f".{_CHILD}." in name and ".lora_" not in name


def check_chosen(model: nn.Module, chosen: Chosen | None = None) -> list[ExpertBlock]:
    """The blocks of the chosen experts (of all, for None), from the first layer to the last; needs no weights.

    Raises ModelError if the model has no routed experts, not these, or such as cannot be trained one by one.
    """
    blocks = {block.name: block for block in find_experts(model)}
    if not blocks:
        raise ModelError("the model has no routed experts", hint="train it with lora or full")
    for name, module in ((name, block.module) for name, block in blocks.items()):
        # The products below do not cover all kinds.
        if getattr(module, "has_post_expert_norm", False) or getattr(module, "_is_expert_parallel", False):
            raise ModelError(
                f"{name}: experts of the kind {type(module).__name__} cannot be trained one by one", _WHOLE
            )
    if chosen is None:
        return list(blocks.values())
    for name, numbers in chosen.items():
        if name not in blocks:
            said = f"the model has no experts called {name}; its first are {next(iter(blocks))}"
            raise ModelError(said, hint=_PROFILE)
        num_experts = blocks[name].num_experts
        if wrong := [number for number in numbers if not 0 <= number < num_experts]:
            raise ModelError(f"{name}: has {num_experts} experts, there is no number {wrong[0]}", hint=_PROFILE)
    found = [block for name, block in blocks.items() if chosen.get(name)]
    if not found:
        raise ModelError("no expert is chosen to be trained", hint=_PROFILE)
    return found


def _switch(model: nn.Module, blocks: list[ExpertBlock]) -> None:
    """Let the model compute its experts by `_forward`."""
    if IMPLEMENTATION not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
    compute_by(model, IMPLEMENTATION)
    for block in blocks:
        if block.module.config._experts_implementation != IMPLEMENTATION:
            raise ModelError(
                f"{block.name}: the experts of {type(model).__name__} cannot be computed in another way", _WHOLE
            )


class ChosenWeights(nn.ModuleDict):
    """The chosen experts' own weights and biases, by number: views of their rows in the fused ones."""

    def __init__(self, block: ExpertBlock, numbers: Sequence[int]) -> None:
        super().__init__()
        self.numbers = tuple(sorted(numbers))
        names = [*block.parameters, *(f"{name}_bias" for name in block.parameters if block.module.has_bias)]
        for number in self.numbers:
            self[str(number)] = nn.ParameterDict(
                {name: nn.Parameter(getattr(block.module, name).data[number]) for name in names}
            )

    def of(self, experts: nn.Module, name: str) -> tuple[nn.Parameter, ...]:
        """One parameter of every chosen expert, in order of their numbers."""
        fused = getattr(experts, name)
        start, step = fused.data_ptr(), fused.stride(0) * fused.element_size()
        rows = tuple(self[str(number)][name] for number in self.numbers)
        for number, row in zip(self.numbers, rows, strict=True):
            if row.data_ptr() != start + number * step:
                # `model.to(device)` or a copy of the model has parted them: it becomes a view again.
                with torch.no_grad():
                    fused[number].copy_(row)
                row.data = fused.data[number]
        return rows


class ChosenLora(nn.Module):
    """LoRA of the chosen experts: A (N, R, in) random, B (N, out, R) zero, for each fused weight.

    They are float32 whatever the weights are, as PEFT's are.
    """

    def __init__(self, block: ExpertBlock, numbers: Sequence[int], rank: int, scale: float) -> None:
        super().__init__()
        self.numbers, self.rank, self.scale = tuple(sorted(numbers)), rank, scale
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        for name in block.parameters:
            weight_EOI = as_out_in(getattr(block.module, name), block.is_transposed)
            num_chosen, (_, num_out, num_in) = len(self.numbers), weight_EOI.shape
            a = weight_EOI.new_empty(num_chosen, rank, num_in, dtype=torch.float32)
            for expert in a:
                nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
            self.lora_A[name] = nn.Parameter(a)
            self.lora_B[name] = nn.Parameter(weight_EOI.new_zeros(num_chosen, num_out, rank, dtype=torch.float32))

    @property
    def num_reached(self) -> int:
        """How many weights of the base the LoRA reaches."""
        return sum(len(a) * a.shape[2] * self.lora_B[name].shape[1] for name, a in self.lora_A.items())


def _forward(experts: nn.Module, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The experts' output (T, D) for the router's choice; what transformers' experts modules call."""
    if not hasattr(experts, _CHILD):
        plain: Any = ALL_EXPERTS_FUNCTIONS["grouped_mm"]
        return plain(experts, x_TD, index_TK, weight_TK)
    rows = RoutedRows.sort(index_TK, experts.down_proj.shape[0], tile=1)
    # In the weights' own dtype, as transformers' experts compute under autocast too.
    with torch.autocast(x_TD.device.type, enabled=False):
        x_SD = x_TD.to(experts.down_proj.dtype).index_select(0, rows.token_P)
        if experts.has_gate:
            a_SI = experts._apply_gate(_project(experts, "gate_up_proj", x_SD, rows))
        else:
            a_SI = experts.act_fn(_project(experts, "up_proj", x_SD, rows))
        y_SD = _project(experts, "down_proj", a_SI, rows)
        y_TKD = rows.as_chosen(y_SD).view(*index_TK.shape, -1)
        return (y_TKD * weight_TK.unsqueeze(-1)).sum(1).to(x_TD.dtype)


def _project(experts: nn.Module, name: str, x: Tensor, rows: RoutedRows) -> Any:
    """One projection of all rows, through which gradients reach what is trained of it."""
    chosen = getattr(experts, _CHILD)
    weight_EOI = as_out_in(getattr(experts, name), experts.is_transposed)
    bias_EO = getattr(experts, f"{name}_bias") if experts.has_bias else None
    if isinstance(chosen, ChosenLora):
        y = _Projection.apply(x, rows, weight_EOI, bias_EO, (), False)
        return _add_update(y, x, rows, chosen, name)
    trained = chosen.of(experts, name)
    if bias_EO is not None:
        trained += chosen.of(experts, f"{name}_bias")
    return _Projection.apply(x, rows, weight_EOI, bias_EO, chosen.numbers, experts.is_transposed, *trained)


class _Projection(torch.autograd.Function):
    """`y = x Wᵀ + b` by expert; gradients for x, and for the trained experts' weights and biases.

    `trained` are the views that train, weights before biases. They are not read: the fused weight holds their numbers.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rows: RoutedRows,
        weight_EOI: Tensor,
        bias_EO: Tensor | None,
        numbers: tuple[int, ...],
        is_transposed: bool,
        *trained: Tensor,
    ) -> Tensor:
        ctx.rows, ctx.numbers, ctx.is_transposed, ctx.has_bias = rows, numbers, is_transposed, bias_EO is not None
        ctx.save_for_backward(x if trained else None, weight_EOI)
        y = rows.times(x, weight_EOI.transpose(1, 2))
        return y if bias_EO is None else y.add_(bias_EO.index_select(0, rows.expert_P))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dy = grads[0].contiguous()
        x, weight_EOI = ctx.saved_tensors
        dx = ctx.rows.times(dy, weight_EOI) if ctx.needs_input_grad[0] else None
        nothing = (None,) * 5
        if not ctx.numbers:
            return (dx, *nothing)
        rows_C, of_chosen = ctx.rows.pick(ctx.numbers)
        x_C, dy_C = x.index_select(0, rows_C), dy.index_select(0, rows_C)
        dweight = of_chosen.outer(x_C, dy_C) if ctx.is_transposed else of_chosen.outer(dy_C, x_C)
        if not ctx.has_bias:
            return (dx, *nothing, *dweight.unbind())
        dbias = dy.new_zeros(len(ctx.numbers), dy.shape[1]).index_add_(0, of_chosen.expert_P, dy_C)
        return (dx, *nothing, *dweight.unbind(), *dbias.unbind())


def _add_update(y: Any, x: Tensor, rows: RoutedRows, chosen: ChosenLora, name: str) -> Any:
    """`y + s (x Aᵀ) Bᵀ` on the chosen experts' rows."""
    rows_C, of_chosen = rows.pick(chosen.numbers)
    a, b = chosen.lora_A[name].to(y.dtype), chosen.lora_B[name].to(y.dtype)
    if missing := rows.pad_rank(chosen.rank, y.element_size()) - chosen.rank:
        a, b = functional.pad(a, (0, 0, 0, missing)), functional.pad(b, (0, missing))
    return y.index_add(0, rows_C, _Update.apply(x.index_select(0, rows_C), of_chosen, a, b, chosen.scale))


class _Update(torch.autograd.Function):
    """`s (x Aᵀ) Bᵀ` by expert: x (C, in), A (N, R, in), B (N, out, R)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RoutedRows, a: Tensor, b: Tensor, scale: float) -> Tensor:
        h = rows.times(x, a.transpose(1, 2))
        ctx.rows, ctx.scale = rows, scale
        ctx.save_for_backward(x, a, b, h)
        return rows.times(h, b.transpose(1, 2)).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, h = ctx.saved_tensors
        dy = grads[0] * ctx.scale
        dh = ctx.rows.times(dy, b)
        return ctx.rows.times(dh, a), None, ctx.rows.outer(dh, x), ctx.rows.outer(dy, h), None
