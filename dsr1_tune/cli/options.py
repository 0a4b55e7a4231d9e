"""The options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DataFiles = Annotated[
    list[Path] | None,
    typer.Option("--data", help="JSON, JSONL, CSV, Parquet, or a cleaned folder; may be repeated.", show_default=False),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="A Hub id or a folder. [default: embedded base]", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run folder. [default: runs/<data>-<date>]", show_default=False)
]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply", show_default=False),
]
Epochs = Annotated[
    float | None, typer.Option("--epochs", help="Passes over the data. [default: 1]", show_default=False)
]
OnAlarm = Annotated[
    str | None,
    typer.Option("--on-alarm", metavar="warn|stop|rollback", help="What an alarm does.", show_default=False),
]
Processes = Annotated[
    int | None, typer.Option("--processes", help="Processes that share the work. [default: 1]", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as adapter.rank=32.", show_default=False),
]
Resume = Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.", show_default=False)]
