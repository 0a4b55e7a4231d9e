"""`dsr1-tune quantize`: a model or a run in a format of fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, Sets


def quantize(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model's folder or Hub id, or a finished run.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="nf4|int8|w4a16|fp8|gguf", help="The format. [default: nf4]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write. [default: SOURCE-FORMAT]", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every layer, not only the routed experts.")] = False,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="rtn|gptq", help="For w4a16. [default: rtn]", show_default=False),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option("--gguf", metavar="TYPE", help="For gguf, such as q8_0. [default: q4_k_m]", show_default=False),
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Quantize the routed experts (with --all every layer) of a model; a run is merged into its base on the way.

    nf4 and int8 are for dsr1-tune itself, w4a16 and fp8 for vLLM and SGLang, gguf for llama.cpp and Ollama. Router,
    embeddings, norms and output head stay as they are; in gguf what is not quantized takes 8 bits, but for router and
    norms. --set quantize.group_size=64 and --config say the rest.
    """
    from dsr1_tune.config.export import ExportRun
    from dsr1_tune.config.load import load_config

    flags = {"quantize.to": to, "quantize.all": all_ or None, "quantize.method": method, "quantize.gguf": gguf}
    settings = load_config(ExportRun, config, flags, sets or ())

    from dsr1_tune.export.quantize import next_step, run

    folder = run(source, out, settings.quantize)
    typer.echo(f"\nThe model is in {folder}. {next_step(settings.quantize, folder)}")
