"""`dsr1-tune check-serve`: does an engine load this?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DOES_NOT_LOAD = 1


def check_serve(
    place: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A model, an adapter, a run or a .gguf file.", show_default=False),
    ],
    engine: Annotated[str, typer.Option("--engine", help="vllm, sglang, llama.cpp or transformers.")] = "vllm",
    version: Annotated[
        str | None,
        typer.Option("--engine-version", help="[default: the release looked at]", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of text")] = False,
) -> None:
    """Tell whether an engine's released version loads this, with which command; and if not, what it does load.

    Exit code 0 if it loads, 1 if it does not.
    """
    from dsr1_tune.export.check_serve import run

    verdict = run(place, engine, version)
    if as_json:
        import json

        names = ("engine", "version", "loads", "problems", "remarks", "command", "instead")
        typer.echo(json.dumps({name: getattr(verdict, name) for name in names}, ensure_ascii=False, indent=1))
    else:
        lines = [f"{verdict.title} {verdict.version} {'loads' if verdict.loads else 'does not load'} {place}"]
        lines += [f"  because {line}" for line in verdict.problems]
        lines += [f"  note: {line}" for line in verdict.remarks]
        lines += [f"serve it with: {verdict.command}"] if verdict.command else []
        lines += [f"it does load what this makes: {line}" for line in verdict.instead[-1:]]
        lines[-1:] = [f"first: {line}" for line in verdict.instead[:-1]] + lines[-1:]
        typer.echo("\n".join(lines))
    if not verdict.loads:
        raise typer.Exit(DOES_NOT_LOAD)
