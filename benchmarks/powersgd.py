"""Bytes that two processes send per step with and without PowerSGD, and what it does to the loss.

    python benchmarks/powersgd.py            # a tiny DeepSeek-V3, under a minute on two cores

Every number that goes through `all_reduce` within DDP's hook is counted. LoRA's factors are thin already, so that
there is little to compress; the base's own weights (`full`) are where PowerSGD pays.
"""

from __future__ import annotations

import argparse
import os
import socket
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from rich.console import Console
from rich.table import Table
from torch import distributed, multiprocessing
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, DeepseekV3Config

from dsr1_tune.config import Adapter
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.runs.trainer.trainer import POWERSGD_START, use_powersgd

MIB = 2**20
NUM_PROCESSES = 2


def main() -> None:
    """One row for each of full and LoRA, without PowerSGD and with each rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]), OMP_NUM_THREADS="1")
    multiprocessing.spawn(_process, args=(given.ranks, given.steps), nprocs=NUM_PROCESSES)


def _process(number: int, ranks: list[int], steps: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=number, world_size=NUM_PROCESSES)
    table = Table(title=f"{NUM_PROCESSES} processes, {steps} steps, the first {POWERSGD_START} of them sent whole")
    for name in ("trained", "PowerSGD", "MiB a step", "of all", "loss"):
        table.add_column(name, justify="right")
    for trained in ("lora", "full"):
        whole = 0.0
        for rank in (0, *ranks):
            sent, loss = _train(trained, rank, steps)
            whole = whole or sent
            table.add_row(
                trained, f"rank {rank}" if rank else "-", f"{sent / MIB:.3f}", f"{sent / whole:.1%}", f"{loss:.4f}"
            )
    if number == 0:
        Console().print(table)
    distributed.destroy_process_group()


def _train(trained: str, rank: int, steps: int) -> tuple[float, float]:
    """Bytes per step once PowerSGD has begun, and the loss of the last step, both processes' mean."""
    settings = DistributedDataParallelKwargs()
    if rank:
        use_powersgd(settings, rank)
    model = DistributedDataParallel(_model(trained), bucket_cap_mb=settings.bucket_cap_mb)
    if rank:
        settings.register_comm_hook(model)
    else:
        model.register_comm_hook(None, default_hooks.allreduce_hook)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=3e-3)
    draws = torch.Generator().manual_seed(distributed.get_rank())
    sent, loss = 0, torch.zeros(())
    for step in range(steps):
        start = torch.randint(0, 64, (4, 1), generator=draws)
        ids = (start + torch.arange(32)) % 64  # counting, which is soon learned
        with _Counted() as counted:
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
        sent += counted.num_bytes if step >= POWERSGD_START else 0
        optimizer.step()
        optimizer.zero_grad()
    loss = loss.detach()
    distributed.all_reduce(loss)
    return sent / (steps - POWERSGD_START), float(loss) / NUM_PROCESSES


def _model(trained: str) -> Any:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=8,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=None,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=32,
        num_nextn_predict_layers=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    if trained == "lora":
        return add_lora(model, Adapter())
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.endswith("mlp.gate.weight"))
    return model


class _Counted:
    """Counts the bytes given to `all_reduce` while it lasts."""

    def __enter__(self) -> _Counted:
        self.num_bytes = 0
        self._before = distributed.all_reduce

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.num_bytes += tensor.nbytes
            return self._before(tensor, *args, **kwargs)

        distributed.all_reduce = counted
        return self

    def __exit__(self, *error: object) -> None:
        distributed.all_reduce = self._before


if __name__ == "__main__":
    main()
