"""Several processes that share a layer's experts out, for tests: started quickly, and layers cut from whole ones."""

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

_TIMEOUT = 240


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


def share_out(layer: nn.Module, parallel: ExpertParallel) -> None:
    """Leave of a whole layer's experts in 16 or 32 bits those that this process is to hold."""
    for block in find_experts(layer):
        module, shard = block.module, ExpertShard(block.num_experts, parallel)
        mine = slice(shard.mine.start, shard.mine.stop)
        for name, weight in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(weight.data[mine].clone(), requires_grad=False)
        module.num_experts = len(shard.mine)
        mark_sharded(module, shard)
        module.config._experts_implementation = BY_ROWS
