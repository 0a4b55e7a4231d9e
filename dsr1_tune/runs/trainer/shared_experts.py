"""What a trainer does where processes share the experts out: gradients, clipping, and an optimizer's saved state.

Every process has gradients of its own tokens alone for what all of them hold, and of all tokens for its own experts,
to which the others' rows came. So the former are summed, and the latter are as they should be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from dsr1_tune.errors import RunError
from dsr1_tune.moe.shared_factors import SharedFactor, find_shared
from dsr1_tune.runs.distributed import group

_OWN_STATE = "optimizer-{rank}-of-{size}.pt"


class SharedExperts:
    """The trained parameters of a model whose experts are shared out: those of this process, and those of all."""

    def __init__(self, model: nn.Module) -> None:
        self.factors: dict[nn.Parameter, SharedFactor] = {one.parameter: one for one in find_shared(model)}
        trained = [one for one in model.parameters() if one.requires_grad]
        self._common = [one for one in trained if one not in self.factors]
        self._own = [one for one in trained if one in self.factors]
        for one in self._common:  # each has drawn or computed them for itself
            distributed.broadcast(one.data, 0)

    def average_gradients(self) -> None:
        """The mean over all processes' losses, as DDP gives it, once a step when gradients are complete."""
        for gradients in _by_kind(self._with_gradient()):
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            distributed.all_reduce(flat)
            flat /= group.world_size()
            for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        for one in self._own:
            if one.grad is not None:
                one.grad /= group.world_size()

    def _with_gradient(self) -> list[nn.Parameter]:
        """What of the common ones has a gradient in any process; zeros are put where this one has none."""
        has_gradient = torch.tensor([one.grad is not None for one in self._common], dtype=torch.uint8)
        distributed.all_reduce(has_gradient, op=distributed.ReduceOp.MAX)
        found = [one for one, has in zip(self._common, has_gradient.tolist(), strict=True) if has]
        for one in found:
            if one.grad is None:
                one.grad = torch.zeros_like(one)
        return found

    def clip(self, max_norm: float) -> Tensor:
        """Scale all gradients down to this norm together; returns the norm that they had in all processes."""
        common, own = (
            torch.nn.utils.get_total_norm([one.grad for one in several if one.grad is not None]).double().square()
            for several in (self._common, self._own)
        )
        own = own.to(self._device)
        distributed.all_reduce(own)
        norm = (common.to(own) + own).sqrt().float()
        torch.nn.utils.clip_grads_with_norm_([*self._common, *self._own], max_norm, norm)
        return norm

    @property
    def _device(self) -> torch.device:
        return next(iter([*self._common, *self._own])).device

    @contextmanager
    def whole_state(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Inside, the first process's optimizer has the state of all experts' factors, to be saved."""
        held = {one: optimizer.state[one] for one in self._own if one in optimizer.state}
        for one, state in held.items():
            gathered = {name: self.factors[one].gather(tensor) for name, tensor in _like(state, one).items()}
            if group.is_main():
                optimizer.state[one] = {**state, **gathered}
        try:
            yield
        finally:
            optimizer.state.update(held)

    def cut_state(self, saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Of an optimizer's saved state what is for this process's experts, and all that is for no expert."""
        parameters = [one for several in optimizer.param_groups for one in several["params"]]
        return {
            **saved,
            "state": {number: self._cut(parameters[number], one) for number, one in saved["state"].items()},
        }

    def _cut(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
        """Copies, as the whole may be read from the disk only where it is asked for."""
        factor = self.factors.get(parameter)
        if factor is None:
            return deepcopy(state)
        size = factor.shard.of_all(parameter.numel())
        whole = {name: one for name, one in state.items() if isinstance(one, Tensor) and one.numel() == size}
        if any(one.dtype == torch.uint8 for one in whole.values()):
            raise RunError(
                "the checkpoint's optimizer has 8-bit state, which cannot be shared out among processes",
                hint="go on with as many processes as it began with",
            )
        return {name: factor.cut(one) if name in whole else deepcopy(one) for name, one in state.items()}


def _by_kind(parameters: list[nn.Parameter]) -> Iterator[list[Tensor]]:
    """The gradients, those of one dtype and device together."""
    kinds: dict[Any, list[Tensor]] = {}
    for one in parameters:
        assert one.grad is not None
        kinds.setdefault((one.grad.dtype, one.grad.device), []).append(one.grad)
    yield from kinds.values()


def _like(state: dict[str, Any], parameter: nn.Parameter) -> dict[str, Tensor]:
    """What of a parameter's state is of its shape."""
    return {name: one for name, one in state.items() if isinstance(one, Tensor) and one.shape == parameter.shape}


def in_8_bits(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps any of its state in blocks of 8-bit numbers, which cannot be cut anew."""
    return any(
        isinstance(one, Tensor) and one.dtype == torch.uint8
        for state in optimizer.state.values()
        for one in state.values()
    )


def save_own_state(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Beside what the first process saves, the state of each process's own experts."""
    file = _OWN_STATE.format(rank=group.rank(), size=group.world_size())
    torch.save(optimizer.state_dict(), checkpoint / file)


def own_state(checkpoint: Path) -> Path | None:
    """Where this process has saved its optimizer's state; None where one state is for all.

    Raises RunError where other numbers of processes have saved theirs.
    """
    found = sorted(checkpoint.glob(_OWN_STATE.format(rank="*", size="*")))
    mine = checkpoint / _OWN_STATE.format(rank=group.rank(), size=group.world_size())
    if found and mine not in found:
        began = found[0].stem.rpartition("-")[2]
        raise RunError(
            f"{checkpoint}: {began} processes have saved their own experts' 8-bit optimizer state, which cannot be "
            "shared out anew",
            hint=f"go on with --processes {began}",
        )
    return mine if found else None
