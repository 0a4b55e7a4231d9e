"""`plan`: the memory that each training method needs, which of them fit, and what to change where none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape

from dsr1_tune.config import PlanRun
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ModelError
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.load import pick_device
from dsr1_tune.models.memory import GIB, main_memory
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.estimate import METHODS, Batch, Method, Plan, Settings
from dsr1_tune.models.memory_plan.estimate import plan as fit
from dsr1_tune.runs.console import plain_table, quiet_libraries
from dsr1_tune.runs.data import encode_and_split
from dsr1_tune.runs.evaluate import MAX_BATCH_TOKENS


def run(config: PlanRun, console: Console | None = None, methods: tuple[Method, ...] = METHODS) -> Plan:
    """Plan `config`: with data for its real lengths, else for the longest that the settings allow.

    Raises TuneError for a base that is not there, or data that cannot be used.
    """
    quiet_libraries()
    base = describe(config.base)
    has_gpu = config.device == "cuda" or (config.device == "auto" and pick_device().type == "cuda")
    device: Literal["cpu", "cuda"] = "cuda" if has_gpu else "cpu"
    settings = Settings(
        schedule=config.schedule,
        adapter=config.adapter,
        train=config.train,
        esft=config.esft,
        router=config.router,
        parallel=config.parallel,
        dtype=config.base.dtype,
        device=device,
    )
    memory = round(config.memory * GIB) if config.memory else _free(device, config.parallel.processes)
    made = fit(base, settings, batch_of(config, base), memory, methods)
    if console:
        show(made, config, console)
    return made


def _free(device: str, processes: int) -> int:
    """Bytes for each process on this machine."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    if device == "cuda":
        raise ModelError("device=cuda: this machine has no GPU whose memory could be asked", hint="say --memory 24GiB")
    return main_memory().free // processes


def batch_of(config: PlanRun, base: PlannedBase) -> Batch:
    """The largest batches that training and measuring will see."""
    schedule = config.schedule
    if not config.data.files or config.sequences.packing:
        longest = schedule.max_tokens
        return Batch(schedule.batch_size, longest, max(1, MAX_BATCH_TOKENS // longest), longest)
    tokenizer = ModelFolder(base.folder, base.name).read_tokenizer()
    data = encode_and_split(prepare(config.data), tokenizer, config)
    train = sorted((len(one.input_ids) for one in data.train), reverse=True)
    rows = min(schedule.batch_size, len(train))
    return Batch(rows, train[0], *_largest_measured([len(one.input_ids) for one in data.eval_subset]))


def _largest_measured(lengths: Sequence[int]) -> tuple[int, int]:
    """(rows, tokens) of the largest batch that runs.evaluate makes of examples of these lengths."""
    best, rows = (1, 1), 0
    for length in sorted(lengths):
        rows = rows + 1 if (rows + 1) * length <= MAX_BATCH_TOKENS else 1
        if rows * length >= best[0] * best[1]:
            best = (rows, length)
    return best


def show(made: Plan, config: PlanRun, console: Console) -> None:
    """The table, and what to change."""
    batch = made.estimates[0].batch
    what = "the longest of the data" if config.data.files and not config.sequences.packing else "schedule.max_tokens"
    console.print(
        f"{escape(made.base.name)}: {made.base.num_parameters / 1e9:,.2f} B parameters, stored as {made.base.stored}; "
        f"{batch.rows} sequences of {batch.tokens:,} tokens ({what}); {made.memory / GIB:,.1f} GiB for each process",
        highlight=False,
        soft_wrap=True,
    )
    table = plain_table("GiB for each process", "", *(one.method for one in made.estimates))
    table.add_row("trained, M", *(f"{one.num_trained / 1e6:,.1f}" for one in made.estimates))
    for name, words in _PARTS.items():
        table.add_row(words, *(_gib(one.parts[name]) for one in made.estimates))
    table.add_section()
    table.add_row("peak", *(_gib(one.peak) for one in made.estimates), style="bold")
    table.add_row("reached in", *(one.phase for one in made.estimates))
    table.add_row("must be there", *(_gib(one.needed) for one in made.estimates))
    table.add_row(
        f"fits in {made.memory / GIB:,.1f}",
        *("[green]yes[/]" if made.fits(one.method) else "[red]no[/]" for one in made.estimates),
    )
    console.print(table)
    for method, advice in made.advice.items():
        console.print(f"{method}: {escape(advice)}", highlight=False, soft_wrap=True)
    if made.choice:
        console.print(f"Take: dsr1-tune {made.choice}", highlight=False)


_PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "largest": "  largest temporary",
    "files": "mapped files",
    "libraries": "libraries",
    "gaps": "gaps, kept by the allocator",
}


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"


def as_json(made: Plan) -> dict[str, Any]:
    """The plan for other programs, in bytes."""
    return {
        "model": made.base.name,
        "parameters": made.base.num_parameters,
        "stored_as": made.base.stored,
        "memory": made.memory,
        "choice": made.choice,
        "methods": {
            one.method: {
                **asdict(one),
                "peak": one.peak,
                "reached_in": one.phase,
                "needed": one.needed,
                "fits": made.fits(one.method),
                "advice": made.advice.get(one.method, ""),
            }
            for one in made.estimates
        },
    }
