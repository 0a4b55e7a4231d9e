"""`dsr1-tune base`: show the embedded base, and build it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def base(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build it anew even if it is in the cache")] = False,
    path: Annotated[bool, typer.Option("--path", help="Print only its folder")] = False,
) -> None:
    """Show the model that is used without --model, and build it if it is not in the cache yet."""
    from rich.console import Console

    from dsr1_tune.models import embedded

    was_built = embedded.find() is not None and not rebuild
    notes = Console(stderr=True, highlight=False)
    with notes.status("building the embedded base ..."):
        folder = embedded.ensure(lambda line: notes.print(line, soft_wrap=True), rebuild=rebuild)
    if path:
        typer.echo(folder)
    else:
        _show(folder, was_built)


def _show(folder: Path, was_built: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from dsr1_tune.models import embedded

    sizes = embedded.sizes(folder)
    num_parameters = sum(size.num_parameters for size in sizes)
    table = Table("part", title="parameters", title_justify="left")
    for column in ("in all", "share", "for each token"):
        table.add_column(column, justify="right")
    for size in sizes:
        share = f"{size.num_parameters / num_parameters:.1%}"
        table.add_row(size.part, f"{size.num_parameters:,}", share, f"{size.num_active:,}")
    table.add_section()
    table.add_row("all", f"{num_parameters:,}", "100.0%", f"{sum(size.num_active for size in sizes):,}")

    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{embedded.DESCRIPTION[0].upper()}{embedded.DESCRIPTION[1:]}.")
    console.print(f"folder: {folder} ({'in the cache' if was_built else 'just built'})")
    console.print(f"made from: {embedded.origin(folder)}")
    console.print(f"size: {num_bytes / 1e9:.2f} GB, float32")
    console.print(table)
