"""`dsr1-tune adapt`, `plan` and `experts`: the whole way, and what is asked before it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dsr1_tune.cli import streams
from dsr1_tune.cli.options import ConfigFile, DataFiles, Epochs, Map, ModelName, Processes, Sets, To, compose, mapping


def adapt(
    data: DataFiles = None,
    model: ModelName = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="24GiB", help="What training may take. [default: what is free]")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="auto|lora|qlora|full|esft", help="How to train. [default: what fits]")
    ] = None,
    to: To = None,
    out: Annotated[Path | None, typer.Option(help="The folder of all that is made. [default: adapted/<data>]")] = None,
    map_: Map = None,
    epochs: Epochs = None,
    processes: Processes = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Plan, clean, train with the method that fits, merge, quantize, compare against gates, and write the card.

    The same command goes on where it was stopped; so does `dsr1-tune adapt --out OUT` alone. Exit code 1 if the
    quantized model misses a gate (gates.max_loss_increase, gates.min_agreement): everything is kept.
    """
    from dsr1_tune.config import AdaptRun

    flags: dict[str, Any] = {
        "data.files": data,
        "data.map": mapping(map_),
        "base.model": model,
        "memory": gpu_memory,
        "method": method,
        "quantize.to": to,
        "schedule.epochs": epochs,
        "parallel.processes": processes,
        "out": out,
    }
    settings = compose(AdaptRun, config, sets, flags)
    if out and not settings.data.files:
        from dsr1_tune.adapt.state import begun_with

        # The settings that the way in `out` began with, and over them what is said now.
        if begun := begun_with(out):
            given = {name: value for name, value in flags.items() if value is not None}
            settings = compose(AdaptRun, None, sets, {**begun.model_dump(mode="json"), **given})

    from dsr1_tune.adapt import run

    run.run(settings)


def plan(
    data: DataFiles = None,
    model: ModelName = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="24GiB", help="Of each GPU, which need not be here. [default: what is free here]"),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option(metavar="512GiB", help="Main memory beside the GPUs, for all processes together.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="GPUs that share the work. [default: 1]")] = None,
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

    flags = {
        "data.files": data,
        "base.model": model,
        "memory": memory,
        "host_memory": host_memory,
        "parallel.processes": processes,
    }
    settings = compose(PlanRun, config, sets, flags, map_)
    made = planning.run(settings, None if as_json else Console())
    if as_json:
        streams.say_json(orjson.dumps(planning.as_json(made), option=orjson.OPT_INDENT_2).decode() + "\n")
    if made.choice is None:
        raise typer.Exit(1)


def experts(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV or Parquet.")],
    model: ModelName = None,
    out: Annotated[Path, typer.Option(help="What to write; the picture goes beside it.")] = Path("experts.json"),
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Profile which experts the data uses: a table, experts.json and a picture; `esft` trains those that it chose.

    --set esft.share=0.4 chooses more of them; `dsr1-tune settings` lists everything else under esft.
    """
    from dsr1_tune.config import EsftRun
    from dsr1_tune.errors import ConfigError

    settings = compose(EsftRun, config, sets, {"data.files": files, "base.model": model}, map_)
    if settings.esft.experts:
        raise ConfigError(
            f"esft.experts: {settings.esft.experts} is what this command writes, it reads none", hint="leave it out"
        )
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder", hint=f"--out {out / 'experts.json'}")

    from dsr1_tune.train.experts import run

    run(settings, out)
