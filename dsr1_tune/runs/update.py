"""Whether training has changed what was to be trained: a run that has learned nothing is not finished."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
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


def fingerprint(model: nn.Module) -> dict[str, int]:
    """A number for every tensor that an update shows in; the same twice, the tensor is bit for bit the same.

    LoRA's A is none of them: as long as B is zero there is no update, though weight decay moves A.
    """
    return {name: _digest(tensor) for name, tensor in changing(model) if ".lora_A." not in name}


def check_changed(model: nn.Module, before: dict[str, int], folder: RunFolder) -> None:
    """Raise ModelError, saying why that may be, if training has left everything bit for bit as it was."""
    if group.any_of(fingerprint(model) != before):
        return
    raise ModelError(
        f"{folder.path}: training has changed nothing: every weight that was to be trained is what it was before",
        hint=_reason(folder),
    )


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
    return f"the steps are smaller than the weights' number format resolves: raise schedule.learning_rate ({see})"


@torch.no_grad()
def _digest(tensor: Tensor) -> int:
    """A sum of the bits, weighted by their places."""
    flat = tensor.detach().contiguous().reshape(-1).view(_INTEGERS[tensor.element_size()])
    digest = flat.numel()
    for piece in flat.split(_PIECE):
        places = torch.arange(1, 2 * len(piece), 2, device=piece.device)  # odd
        digest = (digest * _FACTOR + int((piece.long() * places).sum())) % 2**64
    return digest
