"""The options that several commands share, and how they become a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from dsr1_tune.config import ConfigSection

Config = TypeVar("Config", bound="ConfigSection")

DataFiles = Annotated[
    list[Path] | None,
    typer.Option("--data", help="JSON, JSONL, CSV, TSV, Parquet, or a cleaned folder; may be repeated."),
]
ModelName = Annotated[str | None, typer.Option("--model", help="A Hub id or a folder. [default: embedded base]")]
Out = Annotated[Path | None, typer.Option("--out", help="The run folder. [default: runs/<data>-<date>]")]
Map = Annotated[
    list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply")
]
Epochs = Annotated[float | None, typer.Option("--epochs", help="Passes over the data. [default: 1]")]
OnAlarm = Annotated[str | None, typer.Option("--on-alarm", metavar="warn|stop|rollback", help="What an alarm does.")]
Processes = Annotated[int | None, typer.Option("--processes", help="Processes that share the work. [default: 1]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting, such as adapter.rank=32.")
]
Resume = Annotated[Path | None, typer.Option("--resume", help="Go on with the run in this folder.")]
To = Annotated[
    str | None, typer.Option("--to", metavar="none|nf4|int8|w4a16|fp8|gguf", help="The format. [default: nf4]")
]
MaxLossIncrease = Annotated[str | None, typer.Option(metavar="2%", help="The domain loss may rise by this.")]
MinAgreement = Annotated[str | None, typer.Option(metavar="0.95", help="Share of tokens that must stay the likeliest.")]
MaxGeneralDrop = Annotated[str | None, typer.Option(metavar="1%", help="The general loss may rise by this.")]


def gates(max_loss_increase: str | None, min_agreement: str | None, max_general_drop: str | None) -> dict[str, Any]:
    """The three gates as settings."""
    return {
        "gates.max_loss_increase": max_loss_increase,
        "gates.min_agreement": min_agreement,
        "gates.max_general_drop": max_general_drop,
    }


def compose(
    kind: type[Config],
    config: Path | None,
    sets: list[str] | None,
    flags: Mapping[str, Any],
    columns: list[str] | None = None,
) -> Config:
    """The config of a command from --config, its own flags by the names of their settings, --set and --map."""
    from dsr1_tune.config.load import load_config

    # Last, so that it counts over the whole section `data` of flags that an earlier command was given.
    return load_config(kind, config, {**flags, **({"data.map": mapping(columns)} if columns else {})}, sets or ())


def mapping(columns: list[str] | None) -> dict[str, str] | None:
    """What --map says; None where it is not given."""
    from dsr1_tune.data.read.formats import parse_mapping

    return parse_mapping(columns) if columns else None
