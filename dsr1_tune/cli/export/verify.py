"""`dsr1-tune verify`: are the files still what lineage.json says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DIFFERS = 1


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="What merge, quantize or export wrote.", show_default=False)
    ],
) -> None:
    """Hash every file of an exported model again and name those that are missing, changed or extra.

    What it was made of is looked at too, for information. Exit code 0 if all is well, 1 if not.
    """
    from rich.console import Console

    from dsr1_tune.export import lineage

    known = lineage.known(folder)
    total = sum(int(facts.get("bytes", 0)) for facts in known.files.values())
    with Console(stderr=True).status(f"hashing {total / 2**30:,.1f} GiB ..."):
        differences = lineage.verify(folder)
        origins = lineage.origins(known)
    for difference in differences:
        typer.echo(str(difference))
    told = f"{len(differences)} differ" if differences else "as they were written"
    typer.echo(f"{len(known.files)} files: {told}")
    others = [origin for origin in origins if origin.state != "the same"]
    if origins:
        typer.echo(f"of the {len(origins)} files it was made of {len(origins) - len(others)} are still the same")
    for origin in others:
        typer.echo(f"  {origin.state}: {origin.file} ({origin.stage})")
    if differences:
        raise typer.Exit(DIFFERS)
