"""`dsr1-tune serve`: hand a model over to an engine that is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    place: Annotated[
        Path, typer.Argument(metavar="DIR", help="A model, an adapter, a run or a .gguf file.", show_default=False)
    ],
    engine: Annotated[
        str, typer.Option("--engine", help="auto, vllm, sglang, llama.cpp or transformers; auto takes what is here.")
    ] = "auto",
    host: Annotated[str, typer.Option("--host", help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8000,
    print_command: Annotated[bool, typer.Option("--print-command", help="Print the command and leave")] = False,
) -> None:
    """Serve a model over an OpenAI-compatible API, with an engine that is installed here; Ctrl-C stops it.

    GGUF files go to llama.cpp, everything else to vLLM, SGLang or transformers, the first of them that is here.
    """
    import shlex

    from dsr1_tune.errors import ConfigError, ModelError
    from dsr1_tune.models import artefact
    from dsr1_tune.serve import engines

    if engine not in ("auto", *engines.ENGINES):
        raise ConfigError(f"--engine: {engine} is unknown", hint=f"auto, {', '.join(engines.ENGINES)}")
    found = artefact.of(place)
    name, command = engines.command(found, engine, host, port)

    from dsr1_tune.export.engines import run as check

    verdict = check(found, name)
    if not verdict.loads:
        raise ModelError(
            f"{place}: {verdict.title} does not load it: {'; '.join(verdict.problems)}",
            hint=" && ".join(verdict.instead) or f"dsr1-tune check-serve {place} --engine {name}",
        )
    if print_command:
        typer.echo(shlex.join(command))
        return
    raise typer.Exit(engines.run(command, host, port, _note))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
