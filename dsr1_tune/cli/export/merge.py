"""`dsr1-tune merge`: put what a run trained into its base, and prove it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, Sets


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run, or an adapter's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write. [default: RUN-merged]", show_default=False)
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Merge a run into its base, tensor by tensor in a gigabyte of memory, and certify that nothing was lost.

    A merge that fails its certificate leaves nothing. Settings: merge.fp8, merge.rows, merge.streamed, as
    `dsr1-tune settings` tells.
    """
    from dsr1_tune.config import ExportRun
    from dsr1_tune.config.load import load_config

    settings = load_config(ExportRun, config, {}, sets or ())

    from dsr1_tune.export.merge import run as run_merge

    run = run if run.name not in ("", "..") else run.resolve()  # a folder named by where it lies
    folder = run_merge(run, out or run.with_name(f"{run.name}-merged"), settings.merge)
    typer.echo(f"\nThe merged model is in {folder}. Fewer bits: dsr1-tune quantize {folder} --to nf4")
