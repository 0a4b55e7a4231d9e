"""`dsr1-tune lora`: train low-rank adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as adapter.rank=32.", show_default=False),
]


def lora(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="JSON, JSONL, CSV or Parquet; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A Hub id or a folder. [default: embedded base]")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder. [default: runs/<data>-<date>]")] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply")
    ] = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Passes over the data. [default: 1]")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")] = None,
) -> None:
    """Check data, clean it, and train LoRA on attention, dense layers, shared and routed experts.

    `dsr1-tune settings` lists everything that --config and --set can say.
    """
    from dsr1_tune.config import LoraRun
    from dsr1_tune.data.formats import parse_mapping
    from dsr1_tune.errors import ConfigError
    from dsr1_tune.settings import load_config

    flags = {
        "data.files": [str(file) for file in data] if data else None,
        "data.map": parse_mapping(map_) if map_ else None,
        "base.model": model,
        "schedule.epochs": epochs,
        "out": str(out) if out else None,
    }
    if resume and (config or sets or any(value is not None for value in flags.values())):
        raise ConfigError(
            "--resume goes on with the run's own settings; no others can be given",
            hint=f"dsr1-tune lora --resume {resume}",
        )
    settings = load_config(LoraRun, config, flags, sets or ())
    if not resume and not settings.data.files:
        raise ConfigError("no data is given", hint="dsr1-tune lora --data medical.json")

    from dsr1_tune.train.lora import run

    run(settings, resume)
