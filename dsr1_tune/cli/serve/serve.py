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
    from dsr1_tune.models import artifact
    from dsr1_tune.models.artifact import command_for
    from dsr1_tune.serve import engines

    if engine not in ("auto", *engines.ENGINES):
        raise ConfigError(f"--engine: {engine} is unknown", hint=f"auto, {', '.join(engines.ENGINES)}")
    found = artifact.of(place)

    from dsr1_tune.export.check_serve import run as check

    verdicts = [check(found, name) for name in engines.fitting(found, engine)]
    loading = [verdict.engine for verdict in verdicts if verdict.loads]
    if not loading:
        told = "; ".join(f"{one.title} does not load it: {'; '.join(one.problems)}" for one in verdicts)
        told = f"no engine loads it: {told}" if len(verdicts) > 1 else told
        ways = " && ".join(next((one.instead for one in verdicts if one.instead), ()))
        raise ModelError(
            f"{place}: {told}", hint=ways or f"dsr1-tune check-serve {place} --engine {verdicts[0].engine}"
        )
    command = engines.command(found, loading, host, port)
    if print_command:
        if command is None:
            command = command_for(found, loading[0], host, port)
            _note(f"note: {loading[0]} is not installed here; to install it: {engines.INSTALL[loading[0]]}")
        typer.echo(shlex.join(command))
        return
    if command is None:
        raise engines.not_here(found, loading)
    raise typer.Exit(engines.run(command, host, port, _note))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
