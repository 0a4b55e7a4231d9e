"""What a process needs to know of the others that train with it: who speaks, who writes, and when to wait.

The first process (rank 0) alone talks to the user and writes the run folder. All of them take every step together.
Where there is only one process, nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError
from torch import distributed

from dsr1_tune.config import Parallel, TuneRun
from dsr1_tune.errors import ConfigError, RunError, TuneError
from dsr1_tune.moe.expert_shard import ExpertParallel
from dsr1_tune.runs.distributed.launch import is_launched

Value = TypeVar("Value")
Run = TypeVar("Run", bound=TuneRun)

# One process may build, load or answer for long while the others wait; a process that died is noticed by the launcher.
_TIMEOUT = timedelta(hours=4)


_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)


# What `accelerate launch` is configured with, read before accelerate itself writes into the environment.
_IS_SET = {name for name, value in os.environ.items() if value.lower() in ("1", "true", "yes")}
ACCELERATES_STRATEGY: Literal["fsdp2", None] = "fsdp2" if "ACCELERATE_USE_FSDP" in _IS_SET else None
_IS_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED" in _IS_SET


def join(parallel: Parallel) -> None:
    """Meet the other processes, if this one was started as one of several.

    Raises ConfigError where `parallel` asks for several and there is only this one, or accelerate for DeepSpeed, and
    RunError for too few GPUs.
    """
    if _IS_DEEPSPEED:
        raise ConfigError(
            "accelerate is configured for DeepSpeed, which is not used",
            hint="launch with configs/accelerate/fsdp2.yaml, or --set parallel.strategy=experts without accelerate",
        )
    if not is_launched():
        if parallel.processes > 1:
            raise ConfigError(
                f"parallel.processes is {parallel.processes}, but this is a single process",
                hint="the command line starts them: dsr1-tune lora --processes 2; from Python use `accelerate launch`",
            )
        return
    num_gpus, rank_here = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if num_gpus and rank_here >= num_gpus:
        raise RunError(
            f"more processes than GPUs: there are {num_gpus} here", hint=f"start at most {num_gpus} processes"
        )
    if num_gpus:
        torch.cuda.set_device(rank_here)
    if not distributed.is_initialized():
        # Messages between processes about the run itself use gloo, with or without GPUs.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if num_gpus else "gloo", timeout=_TIMEOUT)


def as_launched(config: Run, is_resumed: bool, say: Callable[[str], None]) -> Run:
    """The config with the processes and the strategy that the run really has, which `accelerate launch` may set.

    Raises ConfigError for what cannot work so.
    """
    parallel = config.parallel
    strategy = ACCELERATES_STRATEGY or parallel.strategy
    if strategy == "experts" and is_resumed and world_size() == 1:
        strategy = "ddp"  # one process holds all experts
    check_number(strategy, parallel, world_size())
    if world_size() > 1:
        schedule = config.schedule
        sizes = (
            f"{world_size()} processes × batch_size {schedule.batch_size} × gradient_accumulation_steps "
            f"{schedule.gradient_accumulation_steps}"
        )
        say(f"{strategy}: {sizes} = {global_batch(config)} sequences a step")
    if is_resumed and parallel.processes != world_size():
        say(f"It began with {parallel.processes} processes: its steps are others now, and so is its curve.")
    if (parallel.processes, parallel.strategy) == (world_size(), strategy):
        return config
    tree = config.model_dump() | {
        "parallel": {**parallel.model_dump(), "processes": world_size(), "strategy": strategy}
    }
    try:
        return type(config).model_validate(tree)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        hint = "choose another parallel.strategy" if "strategy" in message else "start fewer processes, or change that"
        raise ConfigError(message, hint=hint) from None


def check_number(strategy: str, parallel: Parallel, number: int) -> None:
    """Refuse one process where there must be several. Raises ConfigError."""
    if strategy != "ddp" and number == 1:
        raise ConfigError(
            f"{strategy} shares the weights out, but there is one process", hint="--processes 2 starts two; or use ddp"
        )
    if parallel.powersgd_rank and number == 1:
        raise ConfigError(
            "parallel.powersgd_rank is for gradients sent between processes, and there is one",
            hint="start more, or leave it 0",
        )


def global_batch(config: TuneRun) -> int:
    """Sequences that one optimizer step learns from, in all processes together."""
    return world_size() * config.schedule.batch_size * config.schedule.gradient_accumulation_steps


def leave() -> None:
    """Part from the other processes, all at the same time."""
    if distributed.is_initialized():
        barrier()
        distributed.destroy_process_group()
    if not ACCELERATES_STRATEGY:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # accelerate would share out the next model, too


def world_size() -> int:
    """How many processes compute together: 1 inside what `from_main` makes, while the others wait."""
    return distributed.get_world_size() if distributed.is_initialized() and not _is_alone.get() else 1


def rank() -> int:
    """Which of the processes this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that speaks and writes."""
    return rank() == 0


def expert_parallel(parallel: Parallel) -> ExpertParallel | None:
    """Which of the processes that share the experts out this is; None where each has all of them."""
    return ExpertParallel(rank(), world_size()) if parallel.strategy == "experts" else None


def barrier() -> None:
    """Until all processes have come here."""
    any_of(False)


def any_of(flag: bool) -> bool:
    """Whether `flag` is set in any of the processes; the same answer in all."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return bool(flags)


def all_reduce(numbers: torch.Tensor) -> torch.Tensor:
    """The sum over all processes of a tensor that each of them has."""
    if world_size() > 1:
        distributed.all_reduce(numbers)
    return numbers


def all_gather(mine: list[Value]) -> list[Value]:
    """The lists of all processes, one behind the other."""
    if world_size() == 1:
        return mine
    lists: list[Any] = [None] * world_size()
    distributed.all_gather_object(lists, mine)
    return [one for several in lists for one in several]


def from_main(make: Callable[[], Value]) -> Value:
    """What `make` returns in the main process, in all of them; if it fails there, the others end without a word."""
    if world_size() == 1:
        return make()
    box: list[Any] = [None, False]
    try:
        if is_main():
            token = _is_alone.set(True)
            try:
                box = [make(), True]
            finally:
                _is_alone.reset(token)
    finally:
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    if not box[1]:
        raise SystemExit(TuneError.exit_code)
    value: Value = box[0]
    return value


def together(make: Callable[[], Value]) -> Value:
    """What `make` returns, in each process for itself; a TuneError in one of them is raised in all."""
    error: TuneError | None = None
    try:
        value = make()
    except TuneError as caught:
        error = caught
    told = all_gather([(type(error), error.message, error.hint) if error else None])
    if error:
        raise error
    for kind, message, hint in filter(None, told):
        raise kind(message, hint=hint)
    return value


def main_first(make: Callable[[], Value]) -> Value:
    """What `make` returns, in each process for itself, but in the others only after the main one has succeeded."""
    if not is_main():
        from_main(lambda: None)
        return make()
    made: list[Value] = []
    from_main(lambda: made.append(make()))
    return made[0]
