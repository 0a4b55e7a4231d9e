"""`dsr1-tune adapt`: the whole way, from a data file to a model that is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dsr1_tune.cli.export.export import To
from dsr1_tune.cli.options import ConfigFile, DataFiles, Epochs, Map, ModelName, Processes, Sets


def adapt(
    data: DataFiles = None,
    model: ModelName = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory", metavar="24GiB", help="What training may take. [default: what is free]", show_default=False
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="auto|lora|qlora|full|esft",
            help="How to train. [default: what fits]",
            show_default=False,
        ),
    ] = None,
    to: To = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The folder of all that is made. [default: adapted/<data>]", show_default=False),
    ] = None,
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
    from dsr1_tune.config.load import load_config
    from dsr1_tune.data.read.formats import parse_mapping

    flags: dict[str, Any] = {
        "data.files": [str(file) for file in data] if data else None,
        "data.map": parse_mapping(map_) if map_ else None,
        "base.model": model,
        "memory": gpu_memory,
        "method": method,
        "quantize.to": to,
        "schedule.epochs": epochs,
        "parallel.processes": processes,
        "out": str(out) if out else None,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    settings = load_config(AdaptRun, config, given, sets or ())
    if out and not settings.data.files:
        settings = _going_on(out, given, sets or (), settings)

    from dsr1_tune.adapt import run

    run.run(settings)


def _going_on(out: Path, given: dict[str, Any], sets: list[str] | tuple[str, ...], settings: Any) -> Any:
    """The settings that the way in `out` began with, and over them what is said now."""
    from dsr1_tune.adapt import state
    from dsr1_tune.config import AdaptRun
    from dsr1_tune.config.load import load_config

    begun = state.begun_with(out)
    if begun is None:
        return settings
    return load_config(AdaptRun, None, {**begun.model_dump(mode="json"), **given}, sets)
