"""What can be trained on which machine, by plan: the table in docs/plan.md, from the sizes of well-known models alone.

    python benchmarks/plan_table.py

Nothing is downloaded or loaded. Each cell is the first that fits of lora and qlora, in one process for each GPU, with
each of them holding the whole base or sharing the experts out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    DeepseekV32Config,
    Glm4MoeConfig,
    GptOssConfig,
    Qwen3MoeConfig,
)

from dsr1_tune.adapt.allowed import refusal
from dsr1_tune.config import Parallel, PlanRun, Schedule
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.advice import Room, refusal_on
from dsr1_tune.models.memory_plan.base import PlannedBase
from dsr1_tune.models.memory_plan.counting import bytes_of
from dsr1_tune.models.memory_plan.estimate import Batch, Estimator, MemoryEstimate, Method, Settings

_QWEN: dict[str, Any] = {"vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 4, "num_experts": 128,
                         "num_experts_per_tok": 8, "tie_word_embeddings": False}  # fmt: skip
# Published total of parameters in billions (without the layers that predict further tokens), and the sizes.
MODELS: dict[str, tuple[float, str, Any]] = {
    "DeepSeek-V3, R1": (671, "block-FP8", lambda: DeepseekV3Config()),
    "DeepSeek-V3.2": (671, "block-FP8", lambda: DeepseekV32Config()),
    "GLM-4.5": (355, "bfloat16", lambda: Glm4MoeConfig(
        vocab_size=151552, hidden_size=5120, intermediate_size=12288, moe_intermediate_size=1536, num_hidden_layers=92,
        num_attention_heads=96, num_key_value_heads=8, head_dim=128, n_routed_experts=160, n_shared_experts=1,
        num_experts_per_tok=8, first_k_dense_replace=3, use_qk_norm=True, attention_bias=True,
    )),
    "Qwen3-235B-A22B": (235, "bfloat16", lambda: Qwen3MoeConfig(
        **_QWEN, hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, moe_intermediate_size=1536,
    )),
    "gpt-oss-120b": (117, "mxfp4", lambda: GptOssConfig()),
    "Qwen3-30B-A3B": (30.5, "bfloat16", lambda: Qwen3MoeConfig(
        **_QWEN, hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, moe_intermediate_size=768,
    )),
    "DeepSeek-V2-Lite": (15.7, "bfloat16", lambda: DeepseekV2Config(
        vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=27,
        num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
        first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128,
    )),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """GPUs of so many GiB, and the main memory beside them."""

    gpus: int
    each: int
    host: int | None = None

    def __str__(self) -> str:
        return f"{self.gpus} × {self.each} GB" + (f", {self.host} GB of RAM" if self.host else "")


MACHINES = (Machine(8, 80), Machine(8, 24, 512), Machine(1, 80, 400), Machine(1, 24, 128))
BATCH = Batch(1, 2048, 1, 2048)
METHODS: tuple[Method, ...] = ("lora", "qlora")


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    options = parser.parse_args()
    print("| model | parameters | " + " | ".join(map(str, MACHINES)) + " |")
    print("|---|---|" + "---|" * len(MACHINES), flush=True)
    for name in options.models:
        published, stored, make = MODELS[name]
        base = PlannedBase(name, Path(), make(), stored)
        estimator = Estimator(base, Settings(Schedule(batch_size=BATCH.rows), device="cuda"), BATCH)
        cells = " | ".join(best(estimator, machine) for machine in MACHINES)
        total = base.num_parameters / 1e9
        assert abs(total / published - 1) < 0.01, (name, total, published)
        print(f"| {name} | {total:,.1f} B | {cells} |", flush=True)


def best(estimator: Estimator, machine: Machine) -> str:
    """How the model can be trained there."""
    room = Room(machine.each * 10**9, host=machine.host * 10**9 if machine.host else None)
    config = PlanRun(schedule=estimator.settings.schedule)
    would_refuse = partial(refusal_on, estimator.base, partial(refusal, config, estimator.base, "cuda"))
    for method in METHODS:
        allowed = [parallel for parallel in placements(machine) if not would_refuse(method, parallel)]
        for parallel in allowed:
            one = estimator.estimate(method, parallel, room.each)
            if room.holds(one):
                shared = f", {parallel.strategy}" if machine.gpus > 1 else ""
                return f"{method}{shared}: {one.needed / GIB:,.1f} GiB"
    last = estimator.estimate(method, allowed[-1])
    return "not yet: experts in RAM" if fits_with_experts_in_host_memory(estimator, last, room) else "no"


def placements(machine: Machine) -> tuple[Parallel, ...]:
    """One process for each GPU, the simplest first."""
    alone = Parallel(processes=machine.gpus)
    return (alone, alone.model_copy(update={"strategy": "experts"})) if machine.gpus > 1 else (alone,)


def fits_with_experts_in_host_memory(estimator: Estimator, one: MemoryEstimate, room: Room) -> bool:
    """Whether it would fit if the 4-bit experts were in main memory, and two layers of them on the GPU."""
    counted = estimator.counted("qlora")
    experts = bytes_of(held for held in counted.held if held.num_experts and not held.is_added)
    each = experts / (one.parallel.processes if one.parallel.strategy == "experts" else 1)
    staged = 2 * each / len(estimator.base.layer_kinds)
    return one.needed - each + staged <= room.each and room.host is not None and experts <= 0.9 * room.host


if __name__ == "__main__":
    main()
