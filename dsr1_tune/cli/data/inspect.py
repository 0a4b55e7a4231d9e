"""`dsr1-tune data`: check, clean, measure and look at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsr1_tune.cli.data import clean

if TYPE_CHECKING:
    from dsr1_tune.data.record import Drop

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
for _command in (clean.clean, clean.dedup, clean.split):
    app.command(no_args_is_help=True)(_command)

BAD_ROWS = 1


@app.callback()
def data() -> None:
    """Check, clean and look at data files before training on them."""


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
    from dsr1_tune.data.inspect.tables import show as show_report
    from dsr1_tune.data.prepare import examine
    from dsr1_tune.data.read.formats import parse_mapping

    settings = Data(files=tuple(files), map=parse_mapping(map_ or []))
    target = rejects or _default_rejects(files[0])
    _must_not_overwrite(target, files)
    with Console(stderr=True).status("reading ..."):
        prepared = examine(settings)
    report = prepared.report()
    written = _write_rejects(prepared.drops, target) if prepared.drops else None
    if as_json:
        bad_rows = [drop.as_json() for drop in prepared.drops]
        _print_json({**report, "bad_rows": bad_rows, "rejects": str(written) if written else None})
    else:
        show_report(report, Console(), prepared.drops)
        if written:
            typer.echo(f"The bad rows ({len(prepared.drops):,}) are in {written}, each with its reason.")
        else:
            kinds = ", ".join(
                f"{number:,} {kind}{'s' * (number > 1 and kind != 'feedback')}"
                for kind, number in report["kinds"].items()
            )
            typer.echo(f"All {report['num_rows']:,} rows are good ({kinds}).")
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
    from dsr1_tune.data.prepare import write_rejects
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


@app.command(no_args_is_help=True)
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A data file, or a rejected.jsonl", show_default=False)],
    row: Annotated[int | None, typer.Option("--row", help="The row with this index, from 0.")] = None,
    line: Annotated[int | None, typer.Option("--line", help="The row on this line, from 1.")] = None,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="So many rows, drawn at random.")] = None,
    code: Annotated[str | None, typer.Option("--code", help="Only rows dropped with this code.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Do not cut long texts")] = False,
    map_: clean.Map = None,
) -> None:
    """Show single rows as conversations; the first three, if nothing is asked for."""
    from rich.console import Console

    from dsr1_tune.data.inspect.show import is_rejected, pick, read_rejected, show_rows
    from dsr1_tune.data.read.formats import parse_mapping
    from dsr1_tune.data.read.read import read

    rows = read_rejected(file) if is_rejected(file) else read([file], parse_mapping(map_ or []))
    show_rows(pick(rows, row=row, line=line, sample=sample, code=code), Console(), full)


@app.command(no_args_is_help=True)
def stats(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files", show_default=False)],
    base: clean.Tokenizer = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables")] = False,
    map_: clean.Map = None,
) -> None:
    """Count rows by kind, language, length and turns, and the words with which questions begin."""
    from rich.console import Console

    from dsr1_tune.data.inspect.stats import show_stats
    from dsr1_tune.data.inspect.stats import stats as count
    from dsr1_tune.data.read.formats import parse_mapping
    from dsr1_tune.data.read.read import read

    with Console(stderr=True).status("reading ..."):
        found = count(read(files, parse_mapping(map_ or [])), clean.token_counter(base))
    if as_json:
        _print_json(found.as_json())
    else:
        show_stats(found, Console())


@app.command()
def init(
    domain: Annotated[str, typer.Option("--domain", help="medical, legal, finance, support or general.")] = "general",
    language: Annotated[str, typer.Option("--language", help="en or zh.")] = "en",
    format: Annotated[
        str, typer.Option("--format", help="How the rows are written; another word lists all.")
    ] = "messages",
    out: Annotated[Path | None, typer.Option("--out", help="The file to write. [default: <domain>.jsonl]")] = None,
) -> None:
    """Write a small data file to start from, with a page that explains its fields and settings to clean it with."""
    from dsr1_tune.data.inspect.templates import init as write_template

    for path in write_template(domain, language, format, out):
        typer.echo(f"wrote {path}")
