"""`dsr1-tune compare`: hold two models against each other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli.options import ConfigFile, Sets

_MODEL = "A run folder, an adapter, a model folder, a GGUF file, a Hub id, or embedded."
MaxLossIncrease = Annotated[
    str | None,
    typer.Option("--max-loss-increase", metavar="2%", help="The domain loss may rise by this.", show_default=False),
]
MinAgreement = Annotated[
    str | None,
    typer.Option(
        "--min-agreement", metavar="0.95", help="Share of tokens that must stay the likeliest.", show_default=False
    ),
]
MaxGeneralDrop = Annotated[
    str | None,
    typer.Option("--max-general-drop", metavar="1%", help="The general loss may rise by this.", show_default=False),
]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"Before. {_MODEL}")],
    b: Annotated[str, typer.Argument(metavar="B", help="After: any of the same.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Domain rows. [default: what the run held out]", show_default=False),
    ] = None,
    max_loss_increase: MaxLossIncrease = None,
    min_agreement: MinAgreement = None,
    max_general_drop: MaxGeneralDrop = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for compare.json and compare.html.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json in place of the table.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Compare two models: loss, agreement, answers, scores, size and speed, and gates that B has to pass.

    Exit code 1 if a gate is missed. --set compare.answers=0 leaves the answers out, which take most of the time;
    `dsr1-tune settings` lists everything under compare and gates.
    """
    import json

    from rich.console import Console

    from dsr1_tune.config import CompareRun
    from dsr1_tune.config.load import load_config
    from dsr1_tune.models import embedded

    flags = {
        "compare.data": [str(file) for file in data] if data else None,
        **gate_flags(max_loss_increase, min_agreement, max_general_drop),
    }
    settings = load_config(CompareRun, config, flags, sets or ())

    if out is not None:
        _check_out(out)

    from dsr1_tune.export.compare import run

    console = Console(stderr=True, quiet=True) if as_json else Console()
    before, after = (None if name == embedded.NAME else name for name in (a, b))
    found = run(before, after, settings.compare, settings.gates, out, console)
    if as_json:
        typer.echo(json.dumps(found.as_json(), ensure_ascii=False, indent=1, allow_nan=False))
    for line in found.missed:
        print(f"missed: {line}", file=sys.stderr)
    if found.missed:
        raise typer.Exit(1)


def _check_out(out: Path) -> None:
    """Only an earlier comparison is replaced: more files in a model's folder would make `verify` fail."""
    import json

    from dsr1_tune.errors import ConfigError
    from dsr1_tune.export.comparison.page import HTML_NAME, JSON_NAME

    hint = "choose another folder, such as one that does not exist yet"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file", hint=hint)
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if strangers := sorted(names - {JSON_NAME, HTML_NAME}):
        raise ConfigError(f"--out {out}: holds other things than a comparison, such as {strangers[0]}", hint=hint)
    if not names:
        return
    try:
        told = json.loads((out / JSON_NAME).read_text(encoding="utf-8"))
        is_ours = str(told["format"]).startswith("dsr1-tune comparison")
    except (OSError, ValueError, KeyError, TypeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(f"--out {out}: its {sorted(names)[-1]} is not of a comparison of ours", hint=hint)
    print(f"note: the earlier comparison in {out} will be replaced", file=sys.stderr)


def gate_flags(
    max_loss_increase: str | None, min_agreement: str | None, max_general_drop: str | None
) -> dict[str, str | None]:
    """The three gates as settings."""
    return {
        "gates.max_loss_increase": max_loss_increase,
        "gates.min_agreement": min_agreement,
        "gates.max_general_drop": max_general_drop,
    }
