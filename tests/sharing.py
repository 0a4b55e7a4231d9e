"""Several processes that share a layer's experts out, for tests: started quickly, and models cut from whole ones."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_lora import BY_ROWS
from dsr1_tune.moe.expert_shard import ExpertParallel, ExpertShard, mark_sharded
from dsr1_tune.moe.llama4 import compute_by
from dsr1_tune.quant.nf4 import is_held, renew_placeholder

_TIMEOUT = 240
_PARTS = ("packed", "absmax", "scale", "offset", "error")


def in_processes(function: Callable[..., Any], number: int, folder: Path, *args: Any) -> list[Any]:
    """What `function(ExpertParallel, *args)` returns in each of so many processes of one group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sharing", "peft", "transformers.models.auto.modeling_auto"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = [folder / f"told.{rank}" for rank in range(number)]
    processes = [
        context.Process(target=_join, args=(function, ExpertParallel(rank, number), port, file, args), daemon=True)
        for rank, file in enumerate(files)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_TIMEOUT)
        process.kill()
    return [torch.load(file, weights_only=False) for file in files]


def _join(function: Callable[..., Any], parallel: ExpertParallel, port: int, file: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group(
        "gloo", rank=parallel.rank, world_size=parallel.size, timeout=timedelta(seconds=_TIMEOUT)
    )
    torch.save(function(parallel, *args), file)
    distributed.destroy_process_group()


def share_out(model: nn.Module, parallel: ExpertParallel) -> None:
    """Leave of a whole model's experts those that this process is to hold."""
    for block in find_experts(model):
        module = block.module
        shard = ExpertShard(block.num_experts, parallel)
        mine, held = slice(shard.mine.start, shard.mine.stop), []
        for name, weight in list(module.named_parameters(recurse=False)):
            if is_held(module, name):
                held.append(name)
            module._parameters[name] = nn.Parameter(weight.data[mine].clone(), requires_grad=False)
        for name in held:
            for part in _PARTS:
                buffer = getattr(module, f"{name}_{part}")
                each = len(buffer) // shard.num_experts
                setattr(module, f"{name}_{part}", buffer[mine.start * each : mine.stop * each].clone())
            renew_placeholder(module, name)
        module.num_experts = len(shard.mine)
        mark_sharded(module, shard)
        if not held and getattr(module, "config", None) is not None:
            module.config._experts_implementation = BY_ROWS
    if hasattr(model, "set_experts_implementation") and not held:
        compute_by(model, BY_ROWS)
