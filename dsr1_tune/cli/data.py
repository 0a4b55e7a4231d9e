"""`dsr1-tune data`: look at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dsr1_tune.data.record import Drop

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

BAD_ROWS = 1


@app.callback()
def data() -> None:
    """Check data files before training on them."""


@app.command(no_args_is_help=True)
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV, TSV or Parquet; also .gz")],
    map_: Annotated[
        list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables")] = False,
    rejects: Annotated[
        Path | None, typer.Option("--rejects", metavar="PATH", help="Where to write the bad rows", show_default=False)
    ] = None,
) -> None:
    """List every row that cannot be trained on, with its place and its mend.

    Exits 0 if all rows are good, 1 if there are bad rows, 2 if a file cannot be read.
    """
    from rich.console import Console

    from dsr1_tune.config import Data
    from dsr1_tune.data.formats import parse_mapping
    from dsr1_tune.data.pipeline import examine
    from dsr1_tune.data.report import Report, show

    settings = Data(files=tuple(files), map=parse_mapping(map_ or []))
    target = rejects or _default_rejects(files[0])
    _must_not_overwrite(target, files)
    with Console(stderr=True).status("reading ..."):
        prepared = examine(settings)
    report = Report.of(prepared)
    written = _write_rejects(prepared.drops, target) if prepared.drops else None
    if as_json:
        _print_json({**report.as_json(), "rejects": str(written) if written else None})
    else:
        show(report, Console())
        if written:
            typer.echo(f"The bad rows ({len(prepared.drops):,}) are in {written}, each with its reason.")
        else:
            kinds = ", ".join(f"{number:,} {kind}{'s' * (number > 1)}" for kind, number in report.kinds.items())
            typer.echo(f"All {report.num_rows:,} rows are good ({kinds}).")
    if prepared.drops:
        raise typer.Exit(BAD_ROWS)


def _default_rejects(file: Path) -> Path:
    """`medical.jsonl.gz` → `medical.rejects.jsonl` in the current folder."""
    return Path(f"{Path(file.name.removesuffix('.gz')).stem}.rejects.jsonl")


def _must_not_overwrite(rejects: Path, files: list[Path]) -> None:
    from dsr1_tune.errors import DataError

    if rejects.resolve() in {file.resolve() for file in files}:
        raise DataError(
            f"{rejects}: the bad rows would be written over this data file", hint="choose another name with --rejects"
        )


def _write_rejects(drops: tuple[Drop, ...], path: Path) -> Path:
    from dsr1_tune.data.pipeline import write_rejects
    from dsr1_tune.errors import DataError

    try:
        write_rejects(drops, path)
    except OSError as error:
        message = f"{path}: the {len(drops):,} bad rows cannot be written: {error.strerror}"
        raise DataError(message, hint="choose another place with --rejects") from None
    return path


def _print_json(value: dict[str, object]) -> None:
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
