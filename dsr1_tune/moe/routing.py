"""What happens to the routers while the rest is trained: frozen, trained, balanced by a loss, or by a bias.

Letters: T tokens, E routed experts, K experts chosen per token, L layers of routed experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import (
    ExpertBlock,
    RouterBlock,
    find_experts,
    find_routers,
    is_balancing_bias,
    outermost_name,
)

Mode = Literal["frozen", "train", "aux_loss", "bias"]
_LEAVE = "leave router.mode=frozen"


def check_routers(model: nn.Module, mode: Mode) -> None:
    """Refuse a mode that cannot work with the model, which may be one without weights. Raises ModelError."""
    if mode == "frozen":
        return
    name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    blocks, routers = find_experts(model), find_routers(model)
    if not blocks:
        raise ModelError(f"router.mode={mode}: {name} has no routed experts, so no routers", hint=_LEAVE)
    if len(routers) != len(blocks):
        raise ModelError(f"router.mode={mode}: the routers of {name} are of a kind that is not known", hint=_LEAVE)
    has_bias = all(router.bias is not None for router in routers)
    is_softmax = all(router.is_softmax for router in routers)
    if mode == "aux_loss" and not is_softmax:
        hint = "--set router.mode=bias balances such routers" if has_bias else _LEAVE
        raise ModelError(
            f"router.mode=aux_loss needs routers known to score by softmax; those of {name} are not among them",
            hint=hint,
        )
    if mode == "bias" and not has_bias:
        hint = "--set router.mode=aux_loss balances softmax routers" if is_softmax else _LEAVE
        beside = _bias_beside(model, blocks[0])
        said = (
            f"{name} has it beside them ({beside}), where it is not moved" if beside else f"those of {name} have none"
        )
        raise ModelError(f"router.mode=bias needs a balancing bias in each router; {said}", hint=hint)


def _bias_beside(model: nn.Module, block: ExpertBlock) -> str:
    """The name of a balancing bias that the block of the experts holds by itself; empty where there is none."""
    parent = outermost_name(block.name).rpartition(".")[0]
    module = model.get_submodule(parent)
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return next((f"{parent}.{name}" for name, one in tensors if "bias" in name and len(one) == block.num_experts), "")


def open_routers(model: nn.Module, mode: Mode) -> None:
    """Make the routers' weights trainable (train, aux_loss), or their biases ready to be moved (bias).

    Call it when everything else has been frozen or made trainable. Raises ModelError as `check_routers` does, and
    where the biases are held in 16 bits.
    """
    check_routers(model, mode)
    if mode == "frozen":
        return
    for router in find_routers(model):
        full_name = next(name for name, module in model.named_modules() if module is router.module)
        for name, weight in list(router.module.named_parameters()):
            if mode == "bias" or is_balancing_bias(name):
                weight.requires_grad_(False)
                if ".modules_to_save." in full_name:
                    _hold(router.module, name)
            else:
                weight.requires_grad_(True)
        if mode == "bias" and router.bias is not None and router.bias.dtype in (torch.bfloat16, torch.float16):
            raise ModelError(
                f"router.mode=bias: {router.name} holds its bias in {router.bias.dtype}, where small steps are lost",
                hint="choose --set base.dtype=float32",
            )


def _hold(module: nn.Module, name: str) -> None:
    """Keep a parameter as a buffer, saved under the same name: PEFT makes every parameter of its copy trainable."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    held = getattr(owner, leaf).detach()
    delattr(owner, leaf)
    owner.register_buffer(leaf, held)


def load_balancing_loss(logits_TE: Tensor, index_TK: Tensor, is_real_T: Tensor | None = None) -> Tensor:
    """E · Σ_e (rows of e per token) · (mean probability of e), of one layer (Switch Transformer, arXiv 2101.03961).

    K where the load is even. Padding, where `is_real_T` is false, does not count. transformers computes the same of
    all layers together, where one layer's favourite can hide another's.
    """
    real_T1 = torch.ones_like(logits_TE[:, :1], dtype=torch.float32)
    if is_real_T is not None:
        real_T1 = is_real_T.to(real_T1).unsqueeze(1)
    num_real = real_T1.sum().clamp(min=1)
    num_experts = logits_TE.shape[-1]
    rows_E = real_T1.new_zeros(num_experts)
    rows_E.scatter_add_(0, index_TK.reshape(-1).to(torch.int64), real_T1.expand_as(index_TK).reshape(-1))
    probability_E = (torch.softmax(logits_TE.float(), dim=-1) * real_T1).sum(0) / num_real
    return num_experts * (rows_E / num_real * probability_E).sum()


class AuxiliaryLoss:
    """Listens to the routers of a model while it trains, and gives the balance of what they chose as a loss."""

    def __init__(self, model: nn.Module) -> None:
        self._chosen: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooks = [
            router.module.register_forward_hook(partial(self._listen, layer))
            for layer, router in enumerate(find_routers(model))
        ]

    def _listen(self, layer: int, router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        # Inside a backward pass the engine has a task: gradient checkpointing repeats what was heard before.
        if router.training and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            logits_TE, _, index_TK = output
            self._chosen[layer] = (logits_TE, index_TK)

    def take(self, is_real_T: Tensor | None = None) -> Tensor:
        """The mean over the layers for the forward pass just done, which is then forgotten."""
        losses = [load_balancing_loss(logits, index, is_real_T) for logits, index in self._chosen.values()]
        self._chosen = {}
        return torch.stack([loss.to(losses[0].device) for loss in losses]).mean()

    def close(self) -> None:
        """Stop listening."""
        while self._hooks:
            self._hooks.pop().remove()


@torch.no_grad()
def move_biases(routers: Sequence[RouterBlock], load_LE: Tensor, rate: float) -> None:
    """b_e += rate · sign(mean load - load of e), layer by layer (arXiv 2408.15664): who had too much is chosen less."""
    for router, load_E in zip(routers, load_LE, strict=True):
        load_E = load_E[: router.num_experts]
        assert router.bias is not None
        step_E = rate * torch.sign(load_E.mean() - load_E)
        router.bias.add_(step_E.to(router.bias).view_as(router.bias))
