"""`dsr1-tune data`: check, clean, measure and look at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dsr1_tune.config import CleanRun
    from dsr1_tune.data.record import Drop

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

BAD_ROWS = 1

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV, TSV or Parquet; also .gz; a.json:0.7 weighs it")
]
Map = Annotated[
    list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply")
]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write. [default: clean/<file>]")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes. [default: one per core]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting: dedup.similarity=0.9.", show_default=False),
]

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


@app.command(no_args_is_help=True)
def clean(
    files: Files = [],  # noqa: B006
    out: Out = None,
    rules: Annotated[
        str | None, typer.Option("--rules", metavar="PACK", help="A pack of rules, or a YAML file. [default: general]")
    ] = None,
    privacy: Annotated[
        str | None, typer.Option("--privacy", help="Personal data: off, count, redact or drop. [default: the pack's]")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="Evaluation files that no row may hold a question of.")
    ] = None,
    judge: Annotated[bool, typer.Option("--judge", help="Let a small model judge the rows that are left")] = False,
    judge_minutes: Annotated[
        float | None, typer.Option("--judge-minutes", help="Time for the judge. [default: 10]")
    ] = None,
    judge_sample: Annotated[
        float | None, typer.Option("--judge-sample", help="Share of the rows to judge. [default: 1]")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Measure lengths with the tokenizer of this Hub id or folder.")
    ] = None,
    workers: Workers = None,
    engine: Annotated[str | None, typer.Option("--engine", help="local, or ray for many machines.")] = None,
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Clean data: rules, personal data, duplicates, a judge if asked; leaves train, eval, rejected and a report.

    Every row is accounted for: kept, merged with a copy, or dropped with its file, line and reason. A killed run goes
    on where it stopped; the result is the same for any number of workers.
    """
    judges = judge or judge_minutes is not None or judge_sample is not None
    flags = {
        "rules": rules,
        "privacy.action": privacy,
        "dedup.against": [str(file) for file in against] if against else None,
        "judge.on": judges or None,
        "judge.minutes": judge_minutes,
        "judge.sample": judge_sample,
        "base": base,
        "engine": engine,
    }
    _clean(_load(files, out, workers, map_, config, sets, flags))


@app.command(no_args_is_help=True)
def dedup(
    files: Files = [],  # noqa: B006
    out: Out = None,
    similarity: Annotated[
        float | None, typer.Option("--similarity", help="Share of n-grams that makes a near-duplicate. [default: 0.8]")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="Evaluation files that no row may hold a question of.")
    ] = None,
    workers: Workers = None,
    map_: Map = None,
    sets: Sets = None,
) -> None:
    """Merge duplicates and nearly equal rows, and nothing else; duplicates.jsonl shows what was merged with what."""
    flags = {
        "rules": "none",
        "privacy.action": "off",
        "data.eval_share": 0.0,
        "dedup.contradictions": False,
        "dedup.similarity": similarity,
        "dedup.against": [str(file) for file in against] if against else None,
    }
    _clean(_load(files, out, workers, map_, None, sets, flags))


@app.command(no_args_is_help=True)
def split(
    files: Files = [],  # noqa: B006
    out: Out = None,
    eval_share: Annotated[
        float | None, typer.Option("--eval-share", help="Share of the rows to hold out. [default: 0.1]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed draws other rows. [default: 42]")] = None,
    workers: Workers = None,
    map_: Map = None,
    sets: Sets = None,
) -> None:
    """Hold out rows of every file, language and length; rows that are nearly the same stay on one side."""
    off = {"dedup.exact": False, "dedup.near": False, "dedup.contradictions": False}
    flags = {"rules": "none", "privacy.action": "off", "data.eval_share": eval_share, "seed": seed, **off}
    _clean(_load(files, out, workers, map_, None, sets, flags))


def _load(
    files: list[Path],
    out: Path | None,
    workers: int | None,
    map_: list[str] | None,
    config: Path | None,
    sets: list[str] | None,
    flags: dict[str, Any],
) -> CleanRun:
    from dsr1_tune.config import CleanRun, load_config
    from dsr1_tune.data.formats import parse_mapping
    from dsr1_tune.errors import ConfigError

    flags |= {
        "data.files": [str(file) for file in files] or None,
        "data.map": parse_mapping(map_) if map_ else None,
        "workers": workers,
        "out": str(out) if out else None,
    }
    loaded = load_config(CleanRun, config, flags, sets or ())
    if not loaded.data.files:
        raise ConfigError("no data file is given", hint="for example: dsr1-tune data clean medical.json")
    return loaded


def _clean(config: CleanRun) -> None:
    """Run, with a line that says what is going on, then show what came of it."""
    from rich.console import Console

    from dsr1_tune.data import clean
    from dsr1_tune.data.report import show_facts

    with Console(stderr=True).status("reading ...") as status:
        cleaned = clean.run(config, status.update, _token_counter(config.base))
    show_facts(cleaned.facts, Console())
    typer.echo(f"The results are in {cleaned.folder}; open {cleaned.folder / 'report.html'} in a browser.")


def _token_counter(base: str | None) -> Any:
    """Texts → their numbers of tokens, by the tokenizer of a base."""
    if base is None:
        return None
    from dsr1_tune.config import Base
    from dsr1_tune.models.load import locate

    tokenizer = locate(Base(model=base)).tokenizer
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
