"""`dsr1-tune card`: the model card of an exported model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What merge, quantize or export wrote.", show_default=False)
    ],
    language: Annotated[str, typer.Option("--language", help="en, zh, or auto: that of the data.")] = "auto",
) -> None:
    """Write README.md, a model card with what is known of the model: data, training, merge, quantization, engines."""
    from dsr1_tune.errors import ConfigError

    if language not in ("auto", "en", "zh"):
        raise ConfigError(f"--language: {language} is unknown", hint="--language en, zh or auto")

    from dsr1_tune.export.card import run

    typer.echo(f"The model card: {run(folder, language)}")  # type: ignore[arg-type]
