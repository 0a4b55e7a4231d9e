"""`dsr1-tune export`: from a run to a model that is served, or back to the one that was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.export.compare import MaxGeneralDrop, MaxLossIncrease, MinAgreement, gate_flags
from dsr1_tune.cli.options import ConfigFile, Sets

To = Annotated[
    str | None,
    typer.Option("--to", metavar="none|nf4|int8|w4a16|fp8|gguf", help="The format. [default: nf4]", show_default=False),
]


def export(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="The folder of a finished run.", show_default=False)
    ] = None,
    to: To = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where versions are kept. [default: exports/<run>]", show_default=False),
    ] = None,
    max_loss_increase: MaxLossIncrease = None,
    min_agreement: MinAgreement = None,
    max_general_drop: MaxGeneralDrop = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Merge, quantize, compare and write the card; only what passes the gates becomes OUT/current.

    Exit code 1 if a gate is missed: the version goes, its comparison stays in OUT/missed. Whatever happens, the
    version that was current stays current until a better one is whole.
    """
    from dsr1_tune.config import ExportRun
    from dsr1_tune.config.load import load_config

    flags = {
        "run": str(run) if run else None,
        "quantize.to": to,
        "out": str(out) if out else None,
        **gate_flags(max_loss_increase, min_agreement, max_general_drop),
    }
    settings = load_config(ExportRun, config, flags, sets or ())

    from dsr1_tune.export.export import run as run_export

    run_export(settings)
