"""`plan`: the memory that each training method needs, which of them fit, and what to change where none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from rich.markup import escape

from dsr1_tune.adapt.allowed import refusal
from dsr1_tune.config import PlanRun
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ModelError
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.load import pick_device
from dsr1_tune.models.memory import GIB, main_memory
from dsr1_tune.models.memory_plan.advice import Plan, Room
from dsr1_tune.models.memory_plan.advice import plan as fit
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.estimate import METHODS, Batch, MemoryEstimate, Method, Settings
from dsr1_tune.runs.console import plain_table, quiet_libraries
from dsr1_tune.runs.data import encode_and_split
from dsr1_tune.runs.evaluate import MAX_BATCH_TOKENS

Device = Literal["cpu", "cuda"]


def run(config: PlanRun, console: Console | None = None, methods: tuple[Method, ...] = METHODS) -> Plan:
    """Plan `config`: with data for its real lengths, else for the longest that the settings allow.

    Raises TuneError for a base that is not there, or data that cannot be used.
    """
    quiet_libraries()
    base = describe(config.base)
    made = fitted(config, base, batch_of(config, base), methods)
    if console:
        show(made, config, console)
    return made


def fitted(config: PlanRun, base: PlannedBase, batch: Batch, methods: tuple[Method, ...]) -> Plan:
    """The plan of a base that is described, for batches that are known."""
    device = device_of(config)
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
    return fit(base, settings, batch, _room(config, device), methods, partial(refusal, config, base, device))


def device_of(config: PlanRun) -> Device:
    """What is planned for: where no device is said, this machine's, and for a `memory` that is said a GPU."""
    if config.device != "auto":
        return config.device
    return "cuda" if config.memory or pick_device().type == "cuda" else "cpu"


def _room(config: PlanRun, device: Device) -> Room:
    """The memory that was said, or what this machine has free."""
    host = round(config.host_memory * GIB) if config.host_memory else None
    if config.memory:
        return Room(round(config.memory * GIB), host=host)
    if device == "cuda" and torch.cuda.is_available():
        return Room(torch.cuda.mem_get_info()[0], host=host)
    if device == "cuda":
        raise ModelError("device=cuda: this machine has no GPU whose memory could be asked", hint="say --memory 24GiB")
    processes = config.parallel.processes
    return Room(main_memory().free // processes, shared_by=processes)


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
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(_first_line(made, config))
    if made.estimates:
        console.print(_table(made))
    for method, why in made.refused.items():
        say(f"{method}: refused: {escape(why)}")
    for method, advice in made.advice.items():
        say(f"{method}: {escape(advice)}")
    if any(not one.is_traced for one in made.estimates):
        say("≥: far too much before the first step, so activations were not looked at.")
    if made.choice:
        parallel = config.parallel
        several = f" --processes {parallel.processes} --set parallel.strategy={parallel.strategy}"
        say(f"Take: dsr1-tune {made.choice}{several if parallel.processes > 1 else ''}")


def _first_line(made: Plan, config: PlanRun) -> str:
    batch = made.batch
    what = "the longest of the data" if config.data.files and not config.sequences.packing else "schedule.max_tokens"
    where = "this machine's CPU" if device_of(config) == "cpu" else "a GPU"
    if device_of(config) == "cuda" and not torch.cuda.is_available():
        where = "a GPU, which is not here"
        if config.device == "auto":
            where += " (--memory is taken for its; --set device=cpu plans for the CPU)"
    among = f" of {config.parallel.processes}, {config.parallel.strategy}" if config.parallel.processes > 1 else ""
    return (
        f"For {where}: {escape(made.base.name)}: {made.base.num_parameters / 1e9:,.2f} B parameters, stored as "
        f"{made.base.stored}; {batch.rows} sequences of {batch.tokens:,} tokens ({what}); {made.memory / GIB:,.1f} GiB "
        f"for each process{among}"
    )


def _table(made: Plan) -> Any:
    """A column for every method; one that is refused has no numbers."""
    table = plain_table("GiB for each process", "", *made.methods)
    estimates = {one.method: one for one in made.estimates}

    def add(words: str, cell: Any, **style: Any) -> None:
        cells = (cell(estimates[method]) if method in estimates else "–" for method in made.methods)
        table.add_row(words, *cells, **style)

    add("trained, M", lambda one: f"{one.num_trained / 1e6:,.1f}")
    for name, words in _PARTS.items():
        if name not in _IF_ANY or any(one.parts[name] for one in made.estimates):
            add(words, lambda one, name=name: _gib(one.parts[name]) if one.is_traced or name not in _TRACED else "–")
    table.add_section()
    add("peak", lambda one: _least(one) + _gib(one.peak), style="bold")
    add("reached in", lambda one: one.phase)
    add("must be there", lambda one: _least(one) + _gib(one.needed))
    if made.room.host:
        add("main memory, all processes", lambda one: _gib(one.host_of_all))
    words = f"fits in {made.memory / GIB:,.1f}" + (f" and {made.room.host / GIB:,.1f}" if made.room.host else "")
    table.add_row(words, *(_fits(made, method) for method in made.methods))
    return table


def _fits(made: Plan, method: Method) -> str:
    if method in made.refused:
        return "[red]refused[/]"
    return "[green]yes[/]" if made.fits(method) else "[red]no[/]"


def _least(one: MemoryEstimate) -> str:
    return "" if one.is_traced else "≥ "


_PARTS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "exchange": "exchanged rows",
    "largest": "  largest temporary",
    "files": "mapped files",
    "libraries": "libraries",
    "gaps": "gaps, kept by the allocator",
}
_IF_ANY = {"exchange", "files"}
_TRACED = {"activations", "largest", "gaps"}


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"


def as_json(made: Plan) -> dict[str, Any]:
    """The plan for other programs, in bytes."""
    estimates = {
        one.method: {
            **asdict(one),
            "parallel": one.parallel.model_dump(),
            "peak": one.peak,
            "reached_in": one.phase,
            "needed": one.needed,
            "host_of_all": one.host_of_all,
            "fits": made.fits(one.method),
            "refused": "",
            "advice": made.advice.get(one.method, ""),
        }
        for one in made.estimates
    }
    refused = {method: {"method": method, "fits": False, "refused": why} for method, why in made.refused.items()}
    return {
        "model": made.base.name,
        "parameters": made.base.num_parameters,
        "stored_as": made.base.stored,
        "memory": made.memory,
        "host_memory": made.room.host,
        "choice": made.choice,
        "methods": {method: (estimates | refused)[method] for method in made.methods},
    }
