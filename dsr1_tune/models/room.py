"""Is there room for a base? What cannot fit is refused before any weights are read, with what helps who asks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dsr1_tune.config import Parallel
from dsr1_tune.errors import ModelError
from dsr1_tune.models.memory import GIB, main_memory
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.stored_format import NF4_BYTES
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_shard import most_held

_ANYWAY = "choose a smaller model, or use a machine with more memory"
_FILLED = 0.8
"""The part of a GPU that the weights may take where several are advised; the rest is for training."""


@dataclass(frozen=True)
class Holding:
    """How a command will hold a base in memory."""

    quantized: bool = False
    parallel: Parallel | None = None
    """How training shares the work out; None for a command that does not train."""
    may_share_experts: bool = False
    """Whether the command would begin with parallel.strategy=experts."""
    in_4_bits: str = ""
    """How the same is done over a base in 4 bits, where it can be."""

    @property
    def experts_among(self) -> int:
        """How many processes share the experts out."""
        parallel = self.parallel
        return parallel.processes if parallel and parallel.strategy == "experts" else 1


@dataclass(frozen=True)
class Base:
    """What is known of a base before its weights."""

    name: str
    config: Any
    num_parameters: int
    number: torch.dtype
    """The format of what is not quantized."""
    held: Path | None = None
    """Its folder, where its weights are held as they are stored there."""


def check_room(base: Base, holding: Holding, device: torch.device) -> None:
    """Refuse what cannot fit: the kernel would end the process without a word. Raises ModelError."""
    if device.type == "cpu" and int(os.environ.get("LOCAL_RANK", "0")):
        return  # the first process of a machine has asked for all of them
    refuse_more_than(_free(device), base, holding, device)


def refuse_more_than(have: float, base: Base, holding: Holding, device: torch.device) -> None:
    """Refuse a base that needs more than so many bytes of a device. Raises ModelError."""
    need, as_what = _need(base, holding)
    rest, experts = _split(base, need) if holding.experts_among > 1 else (need, 0.0)
    need = rest + experts * _largest_share(base, holding.experts_among)
    if need <= have:
        return
    among = f" in each of {holding.experts_among} processes" if holding.experts_among > 1 else ""
    raise ModelError(
        f"{base.name}: its {base.num_parameters / 1e9:.1f} B weights need {need / GIB:.1f} GiB {as_what}{among}, "
        f"{device} has {have / GIB:.1f} GiB free" + _for_each(device),
        hint=", or ".join((*_ways(base, holding, device, have), _ANYWAY)),
    )


def out_of_memory_hint(quantized: bool) -> str:
    """What helps where a base turns out not to fit while it is loaded."""
    return _ANYWAY if quantized else f"try qlora, or {_ANYWAY}"


def _need(base: Base, holding: Holding) -> tuple[float, str]:
    """(bytes of all its weights, in which format they are held)."""
    if base.held:
        checkpoint = Checkpoint(base.held)
        specs = [checkpoint.spec(name) for name in checkpoint.names]
        wide = ("F32", "F16", "BF16")  # these become `number`, what is quantized stays as it is
        numbers = (spec.num_elements * (base.number.itemsize if spec.dtype in wide else 1) for spec in specs)
        return float(sum(numbers)), "as they are stored"
    if holding.quantized:
        return base.num_parameters * NF4_BYTES, "in 4 bits"
    return float(base.num_parameters * base.number.itemsize), f"as {str(base.number).removeprefix('torch.')}"


def _free(device: torch.device) -> float:
    """Bytes for this process: of its GPU, or its share of the main memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return main_memory().free / _processes_here()


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _for_each(device: torch.device) -> str:
    number = _processes_here()
    return f" for each of {number} processes" if device.type == "cpu" and number > 1 else ""


def _split(base: Base, need: float) -> tuple[float, float]:
    """Of so many bytes those of all but the routed experts, and those of these."""
    model = meta_model(base.config)
    of_experts = sum(w.numel() for block in find_experts(model) for w in block.module.parameters(recurse=False))
    share = of_experts / max(sum(weight.numel() for weight in model.parameters()), 1)
    return need * (1 - share), need * share


def _largest_share(base: Base, processes: int) -> float:
    """The part of the experts that one of several processes has, at most."""
    if processes == 1:
        return 1.0
    blocks = find_experts(meta_model(base.config))
    return max((most_held(block.num_experts, processes) / block.num_experts for block in blocks), default=1.0)


def _ways(base: Base, holding: Holding, device: torch.device, have: float) -> list[str]:
    """What helps this command on this machine or several GPUs like its own."""
    ways = []
    among = holding.experts_among
    if holding.in_4_bits and not holding.quantized and among == 1 and base.num_parameters * NF4_BYTES <= have:
        ways.append(holding.in_4_bits)
    if not holding.quantized and base.number.itemsize == 4 and base.num_parameters * 2 <= have * among:
        ways.append("--set base.dtype=bfloat16")
    if holding.may_share_experts and device.type == "cuda":
        need, _ = _need(base, holding)
        rest, experts = _split(base, need)
        most = max((block.num_experts for block in find_experts(meta_model(base.config))), default=0)
        fitting = (
            number for number in range(2, most + 1) if rest + experts * most_held(most, number) / most <= have * _FILLED
        )
        if number := next(fitting, 0):
            ways.append(f"--processes {number} --set parallel.strategy=experts, on {number} GPUs like this one")
    return ways
