"""`dsr1-tune doctor`: what this machine is, what works on it, what is missing and how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dsr1_tune.cli import streams
from dsr1_tune.text.amount import amount

if TYPE_CHECKING:
    from rich.table import Table

    from dsr1_tune.runs.environment import Capabilities, Problem, Requirement


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables")] = False) -> None:
    """Try what training needs on this machine; name what is missing and the command that mends it.

    Exits 0 if `dsr1-tune lora` can run here, else 2.
    """
    from dsr1_tune.runs import environment

    needs = environment.requirements()
    here = _look()
    problems = environment.problems(here)
    if as_json:
        _print_json(needs, here, problems)
    else:
        _print_tables(needs, here, problems)
    if any(problem.is_fatal for problem in problems):
        raise typer.Exit(2)


def _look() -> Capabilities | None:
    """The machine's capabilities, or None where torch is missing or broken."""
    from rich.console import Console

    from dsr1_tune.runs import environment

    try:
        with Console(stderr=True).status("trying the kernels ..."):
            return environment.capabilities()
    except (ImportError, OSError):  # OSError: torch is there, a library that it loads is not
        return None


def _print_json(needs: list[Requirement], here: Capabilities | None, problems: list[Problem]) -> None:
    from dataclasses import asdict

    import orjson

    from dsr1_tune.models import isolated_env

    tree = {
        "can_train": not any(problem.is_fatal for problem in problems),
        "capabilities": asdict(here) if here else None,
        "packages": [asdict(need) for need in needs],
        "problems": [asdict(problem) for problem in problems],
        "tools": [asdict(tool) for tool in isolated_env.installed()],
    }
    streams.say_json(orjson.dumps(tree, default=str, option=orjson.OPT_INDENT_2).decode() + "\n")


def _print_tables(needs: list[Requirement], here: Capabilities | None, problems: list[Problem]) -> None:
    from rich.console import Console
    from rich.markup import escape

    from dsr1_tune import __version__
    from dsr1_tune.models import embedded, isolated_env

    console = Console()
    if here:
        console.print(f"dsr1-tune {__version__}, Python {here.python}, {here.system}, {amount(here.num_cores, 'core')}")
        console.print(_devices(here))
        disks = [f"{free:.0f} GiB in {folder}" for folder, free in here.disk_free_gib.items()]
        disks += [f"nothing can be written in {folder}" for folder in here.read_only]
        console.print(f"disk free: {', '.join(disks)}", soft_wrap=True, highlight=False, markup=False)
    built = embedded.find()
    state = f"built in {built}" if built else "not built yet" if embedded.wheel_file() else "not here"
    console.print(f"embedded base: {state}", soft_wrap=True, highlight=False)
    console.print(_packages(needs))
    for tool in isolated_env.installed():  # each is installed when a command first needs it
        state = f"{tool.num_bytes / 2**20:.0f} MiB in {tool.folder}" if tool.folder else "not installed yet"
        console.print(f"{tool.packages[0]} for {tool.used_for}: {state}", soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(f"[{'red' if problem.is_fatal else 'yellow'}]{escape(problem.said)}[/]", soft_wrap=True)
        console.print(f"  mend: {escape(problem.mend)}", soft_wrap=True, highlight=False)
    cannot = any(problem.is_fatal for problem in problems)
    console.print("`dsr1-tune lora` cannot run here yet." if cannot else "`dsr1-tune lora` can run here.")


def _devices(here: Capabilities) -> Table:
    from rich.table import Table

    table = Table("device", "model", "memory free / GiB", "bfloat16", "4-bit kernels", "grouped_mm")
    for device in here.devices:
        memory = f"{device.free_gib:.1f} of {device.total_gib:.1f}"
        trials = (device.bf16, device.four_bit, device.grouped_mm)
        told = ["[green]works[/]" if trial.works else "[red]fails[/]" for trial in trials]
        if device.grouped_mm.works and device.has_fused_groups is not None:
            told[-1] += ", one kernel" if device.has_fused_groups else ", a loop over experts"
        table.add_row(device.name, device.model, memory, *told)
    return table


def _packages(needs: list[Requirement]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("package", "needed", "installed", "")
    for need in needs:
        verdict = "[green]ok[/]" if need.is_met else "[red]missing[/]" if not need.installed else "[red]other[/]"
        table.add_row(need.name, escape(need.wanted), need.installed or "-", verdict)
    return table
