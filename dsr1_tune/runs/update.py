"""Whether training has changed what was to be trained: a run that has learned nothing is not finished."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained.effect import LowRank, low_rank_updates
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.callbacks import read_log

_PIECE = 2**22
_FACTOR = 6364136223846793005  # odd: one number that changes always shows
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def changing(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that training may change, with their names."""
    part_of = Anatomy(model)
    yield from ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    # The bias by which a sigmoid router is balanced is moved without a gradient.
    yield from (
        (name, buffer)
        for name, buffer in model.named_buffers()
        if buffer.is_floating_point() and part_of(name) == "router"
    )


@dataclass(frozen=True)
class Beginning:
    """What training may change, as it was before."""

    digests: dict[str, int]
    """A number for every tensor but LoRA's A and B; the same twice, the tensor is bit for bit the same."""
    factors: tuple[tuple[Tensor, Tensor] | None, ...]
    """A and B of every low-rank update, of one that is zero as long as B is, None."""

    def untrained(self, model: nn.Module) -> list[str]:
        """The linear layers of an adapter that have learned nothing, as no gradient has come to them."""
        updates = low_rank_updates(model)
        both = zip(updates, self.factors, strict=True)
        return [one.name for one, begun in both if one.is_linear and one.is_zero(begun)]

    @classmethod
    def of(cls, model: nn.Module) -> Beginning:
        """That of a model which is not trained yet."""
        updates = tuple(low_rank_updates(model))
        begun = tuple((_kept(one.lora_a), _kept(one.lora_b)) if one.lora_b.any() else None for one in updates)
        return cls(_fingerprint(model, updates), begun)


def _kept(factor: Tensor) -> Tensor:
    return factor.detach().to("cpu", copy=True)


def _fingerprint(model: nn.Module, updates: tuple[LowRank, ...]) -> dict[str, int]:
    factors = {id(factor) for one in updates for factor in (one.lora_a, one.lora_b)}
    return {name: _digest(tensor) for name, tensor in changing(model) if id(tensor) not in factors}


def check_changed(model: nn.Module, before: Beginning, folder: RunFolder) -> None:
    """Raise ModelError, saying why that may be, if training has left the model as it was.

    A low-rank update has changed something if it changes a weight of the base, in the number format of the base.
    """
    updates = tuple(low_rank_updates(model))
    is_changed = _fingerprint(model, updates) != before.digests or any(
        one.shows(begun) for one, begun in zip(updates, before.factors, strict=True)
    )
    if group.any_of(is_changed):
        return
    what = "no weight of the base differs with the update added to it" if updates else "every weight is what it was"
    raise ModelError(f"{folder.path}: training has changed nothing: {what}", hint=_reason(folder))


def _reason(folder: RunFolder) -> str:
    norms = [float(line["grad_norm"]) for line in read_log(folder) if "grad_norm" in line]
    see = f"{folder.log_file} has grad_norm and learning_rate of every step"
    if not any(norms):
        return (
            "no step had a gradient; rewards that fail, or are the same for all answers to a prompt, leave none: "
            f"make them tell answers apart ({see})"
        )
    if not any(map(math.isfinite, norms)):
        return f"no step had a finite gradient, so none was taken: try --set base.dtype=float32 ({see})"
    return f"the steps are less than the weights' number format can tell: raise schedule.learning_rate ({see})"


@torch.no_grad()
def _digest(tensor: Tensor) -> int:
    """A sum of the bits, weighted by their places."""
    flat = tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
    digest = flat.numel()
    for piece in flat.split(_PIECE):
        places = torch.arange(1, 2 * len(piece), 2, device=piece.device)  # odd
        digest = (digest * _FACTOR + int((piece.long() * places).sum())) % 2**64
    return digest
