"""`dsr1-tune convert-adapter`: the same adapter in the layout of another engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert_adapter(
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", help="An adapter's folder, or the run that holds it.", show_default=False),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", help="per-expert for vLLM, SGLang and older PEFT; peft-fused for PEFT with transformers 5."
        ),
    ] = "per-expert",
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write. [default: ADAPTER-<to>]", show_default=False)
    ] = None,
) -> None:
    """Unfuse an adapter's LoRA A and B of fused experts into a pair for each expert, or fuse them again, bit for bit.

    Of the base only its files' names, config.json and tokenizer are read.
    """
    from dsr1_tune.errors import ConfigError

    if to not in ("per-expert", "peft-fused"):
        raise ConfigError(f"--to: {to} is unknown", hint="--to per-expert or --to peft-fused")

    from dsr1_tune.export.convert_adapter import run

    run(adapter, to, out or adapter.with_name(f"{adapter.absolute().name}-{to}"))  # type: ignore[arg-type]
