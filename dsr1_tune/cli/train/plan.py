"""`dsr1-tune plan`: what every way of training takes, before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dsr1_tune.cli.options import ConfigFile, DataFiles, Map, ModelName, Sets

Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="24GiB", help="For each process. [default: what is free]", show_default=False),
]
PlannedProcesses = Annotated[
    int | None, typer.Option("--processes", help="GPUs that share the work. [default: 1]", show_default=False)
]


def plan(
    data: DataFiles = None,
    model: ModelName = None,
    memory: Memory = None,
    processes: PlannedProcesses = None,
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table")] = False,
) -> None:
    """Say what lora, qlora, full, esft and dpo take of a base of any size, from its config.json alone, and what fits.

    Nothing is downloaded but a few small files. Exits 0 if lora or qlora fits, else 1.
    """
    import orjson
    from rich.console import Console

    from dsr1_tune.adapt import plan as planning
    from dsr1_tune.config import PlanRun
    from dsr1_tune.config.load import load_config
    from dsr1_tune.data.read.formats import parse_mapping

    flags: dict[str, Any] = {
        "data.files": [str(file) for file in data] if data else None,
        "data.map": parse_mapping(map_) if map_ else None,
        "base.model": model,
        "memory": memory,
        "parallel.processes": processes,
    }
    settings = load_config(PlanRun, config, flags, sets or ())
    made = planning.run(settings, None if as_json else Console())
    if as_json:
        typer.echo(orjson.dumps(planning.as_json(made), option=orjson.OPT_INDENT_2).decode())
    if made.choice is None:
        raise typer.Exit(1)
