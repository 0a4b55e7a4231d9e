"""`dsr1-tune data`: check, clean, measure and look at data before training on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsr1_tune.cli import streams
from dsr1_tune.cli.options import ConfigFile, Map, compose, mapping

if TYPE_CHECKING:
    from dsr1_tune.config import TuneRun
    from dsr1_tune.data.record import Drop

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV, Parquet; also .gz; a.json:0.7 weighs it")
]
Out = Annotated[Path | None, typer.Option(help="The folder to write. [default: clean/, merged/ or split/<file>]")]
Workers = Annotated[int | None, typer.Option(help="Processes. [default: one per core]")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting: dedup.similarity=0.9.")
]
Against = Annotated[list[Path] | None, typer.Option(help="Evaluation files that no row may hold a question of.")]
Tokenizer = Annotated[
    str | None, typer.Option("--base", help="Measure lengths with the tokenizer of this Hub id or folder.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables")]


@app.callback()
def data() -> None:
    """Check, clean and look at data files before training on them."""


# --- clean, dedup, split ---------------------------------------------------------------------------------------------


@app.command(no_args_is_help=True)
def clean(
    files: Files = [],  # noqa: B006
    out: Out = None,
    rules: Annotated[
        str | None, typer.Option(metavar="PACK", help="A pack of rules, or a YAML file. [default: general]")
    ] = None,
    privacy: Annotated[
        str | None, typer.Option(help="Personal data: off, count, redact or drop. [default: the pack's]")
    ] = None,
    against: Against = None,
    judge: Annotated[bool, typer.Option("--judge", help="Let a small model judge the rows that are left")] = False,
    judge_minutes: Annotated[float | None, typer.Option(help="Time for the judge. [default: 10]")] = None,
    judge_sample: Annotated[float | None, typer.Option(help="Share of the rows to judge. [default: 1]")] = None,
    base: Tokenizer = None,
    workers: Workers = None,
    engine: Annotated[str | None, typer.Option(help="local, or ray for many machines.")] = None,
    map_: Map = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Clean data: rules, personal data, duplicates, a judge if asked; leaves train, eval, rejected and a report.

    Every row is accounted for: kept, merged with a copy, or dropped with its file, line and reason. A killed run goes
    on where it stopped; the result is the same for any number of workers.
    """
    flags = {
        "data.rules": rules,
        "privacy.action": privacy,
        "dedup.against": against,
        "judge.ask": judge or judge_minutes is not None or judge_sample is not None or None,
        "judge.minutes": judge_minutes,
        "judge.sample": judge_sample,
        "base": base,
        "engine": engine,
    }
    _clean(files, out, workers, map_, config, sets, flags)


@app.command(no_args_is_help=True)
def dedup(
    files: Files = [],  # noqa: B006
    out: Out = None,
    similarity: Annotated[
        float | None, typer.Option(help="Share of n-grams that makes a near-duplicate. [default: 0.8]")
    ] = None,
    against: Against = None,
    workers: Workers = None,
    map_: Map = None,
    sets: Sets = None,
) -> None:
    """Merge duplicates and nearly equal rows, and nothing else; duplicates.jsonl shows what was merged with what."""
    off = {"data.rules": "none", "privacy.action": "off", "data.eval_share": 0.0, "dedup.contradictions": False}
    flags = {**off, "dedup.similarity": similarity, "dedup.against": against}
    _clean(files, out or _place("merged", files), workers, map_, None, sets, flags)


@app.command(no_args_is_help=True)
def split(
    files: Files = [],  # noqa: B006
    out: Out = None,
    eval_share: Annotated[float | None, typer.Option(help="Share of the rows to hold out. [default: 0.1]")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed draws other rows. [default: 42]")] = None,
    workers: Workers = None,
    map_: Map = None,
    sets: Sets = None,
) -> None:
    """Hold out rows of every file, language and length; rows that are nearly the same stay on one side."""
    off = {"dedup.exact": False, "dedup.near": False, "dedup.contradictions": False}
    flags = {"data.rules": "none", "privacy.action": "off", "data.eval_share": eval_share, "seed": seed, **off}
    _clean(files, out or _place("split", files), workers, map_, None, sets, flags)


def _place(folder: str, files: list[Path]) -> Path | None:
    """`merged/medical`, so that the commands do not replace one another's results."""
    return Path(folder) / Path(files[0].name.removesuffix(".gz")).stem if files else None


def _clean(
    files: list[Path],
    out: Path | None,
    workers: int | None,
    map_: list[str] | None,
    config: Path | None,
    sets: list[str] | None,
    flags: dict[str, Any],
) -> None:
    """Run, with a line that says what is going on, then show what came of it."""
    from dsr1_tune.config import CleanRun
    from dsr1_tune.errors import ConfigError

    flags |= {"data.files": files or None, "workers": workers, "out": out}
    settings = compose(CleanRun, config, sets, flags, map_)
    if not settings.data.files:
        raise ConfigError("no data file is given", hint="for example: dsr1-tune data clean medical.json")

    from rich.console import Console

    from dsr1_tune.data.clean import run
    from dsr1_tune.data.inspect.tables import show_cleaned

    try:
        with Console(stderr=True).status("reading ...") as status:
            cleaned = run.run(settings, status.update, token_counter(settings.base))
    except KeyboardInterrupt:
        typer.echo("Stopped; nothing is written yet. The same command goes on from here.", err=True)
        raise
    show_cleaned(cleaned.report, Console())
    typer.echo(f"The results are in {cleaned.folder}; open {cleaned.folder / 'report.html'} in a browser.")


def token_counter(base: str | None) -> Callable[[list[str]], list[int]] | None:
    """Texts → their numbers of tokens, by the tokenizer of a base."""
    if base is None:
        return None
    from dsr1_tune.config import Base
    from dsr1_tune.models.load import locate

    tokenizer = locate(Base(model=base)).tokenizer
    return lambda texts: [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


# --- check, show, stats, init ----------------------------------------------------------------------------------------


@app.command(no_args_is_help=True)
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV, TSV or Parquet; also .gz")],
    map_: Map = None,
    as_json: Json = False,
    rejects: Annotated[Path | None, typer.Option(metavar="PATH", help="Where to write the bad rows")] = None,
) -> None:
    """List every row that cannot be trained on, with its place and its mend.

    Exits 0 if all rows are good, 1 if there are bad rows, 2 if a file cannot be read.
    """
    from rich.console import Console

    from dsr1_tune.config import Data
    from dsr1_tune.data.inspect.tables import show as show_report
    from dsr1_tune.data.prepare import examine
    from dsr1_tune.errors import DataError
    from dsr1_tune.text.amount import amount

    settings = Data(files=tuple(files), map=mapping(map_) or {})
    # `medical.jsonl.gz` → `medical.rejects.jsonl` in the current folder.
    target = rejects or Path(f"{Path(files[0].name.removesuffix('.gz')).stem}.rejects.jsonl")
    if target.resolve() in {file.resolve() for file in files}:
        raise DataError(
            f"{target}: the bad rows would be written over this data file", hint="choose another name with --rejects"
        )
    with Console(stderr=True).status("reading ..."):
        prepared = examine(settings)
    report, drops = prepared.report(), prepared.drops
    if drops:
        _write_rejects(drops, target)
    if as_json:
        bad_rows = [drop.as_json() for drop in drops]
        _print_json({**report, "bad_rows": bad_rows, "rejects": str(target) if drops else None})
    else:
        show_report(report, Console(), drops)
        if drops:
            typer.echo(f"The bad rows ({len(drops):,}) are in {target}, each with its reason.")
        else:
            kinds = ", ".join(
                amount(number, kind, kind if kind == "feedback" else "") for kind, number in report["kinds"].items()
            )
            typer.echo(f"{_all_good(report['num_rows'])} ({kinds}).")
    if drops:
        raise typer.Exit(1)


def _all_good(num_rows: int) -> str:
    return "The only row is good" if num_rows == 1 else f"All {num_rows:,} rows are good"


def _write_rejects(drops: tuple[Drop, ...], path: Path) -> None:
    from dsr1_tune.data.prepare import write_rejects
    from dsr1_tune.errors import DataError

    try:
        write_rejects(drops, path)
    except OSError as error:
        message = f"{path}: the bad rows ({len(drops):,}) cannot be written: {error.strerror}"
        raise DataError(message, hint="choose another place with --rejects") from None


def _print_json(value: object) -> None:
    import orjson

    streams.say_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")


@app.command(no_args_is_help=True)
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A data file, or a rejected.jsonl")],
    row: Annotated[int | None, typer.Option(help="The row with this index, from 0.")] = None,
    line: Annotated[int | None, typer.Option(help="The row on this line, from 1.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="So many rows, drawn at random.")] = None,
    code: Annotated[str | None, typer.Option(help="Only rows dropped with this code.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Do not cut long texts")] = False,
    base: Annotated[
        str | None,
        typer.Option(help="As the chat template of this Hub id or folder shows them, and what is learned of them."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --base: print JSON, with token ids and labels")] = False,
    map_: Map = None,
    config: ConfigFile = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="With --base: a setting of lora, such as sequences.think=mask."
        ),
    ] = None,
) -> None:
    """Show single rows as conversations; the first three, if nothing is asked for.

    With --base they are shown as a run with the same settings would train on them: what is learned is green, or
    between « and » where the output has no colours.
    """
    from rich.console import Console

    from dsr1_tune.data.inspect.show import is_rejected, pick, read_rejected, show_rows
    from dsr1_tune.data.read.read import read

    settings = None
    if base or config or sets or as_json:
        settings = _settings_of_run(base, config, sets, map_)
        map_ = [f"{name}={column}" for name, column in settings.data.map.items()]
    rows = read_rejected(file) if is_rejected(file) else read([file], mapping(map_))
    picked = pick(rows, row=row, line=line, sample=sample, code=code)
    if settings is None:
        show_rows(picked, Console(), full)
        return

    from dsr1_tune.data.encode.template import check_arguments
    from dsr1_tune.data.inspect.learned import learned_as_json, show_learned
    from dsr1_tune.models.load import locate

    tokenizer = locate(settings.base).tokenizer
    check_arguments(tokenizer, settings.template.kwargs)
    if as_json:
        _print_json(learned_as_json(picked, tokenizer, settings))
    else:
        show_learned(picked, tokenizer, settings, Console())


def _settings_of_run(
    base: str | None, config: Path | None, sets: list[str] | None, columns: list[str] | None
) -> TuneRun:
    """What a run of lora, full or esft would be told, whichever the file is for; it must name a base."""
    from dsr1_tune.config import EsftRun, FullRun, LoraRun
    from dsr1_tune.config.load import kind_of
    from dsr1_tune.errors import ConfigError
    from dsr1_tune.models import embedded

    kind = kind_of(config, (LoraRun, FullRun, EsftRun)) if config else LoraRun
    settings = compose(kind, config, sets, {"base.model": base}, columns)
    if settings.base.model is None:
        raise ConfigError(
            "without a base there is no chat template to show rows by",
            hint=f"add --base with a Hub id, a folder or {embedded.NAME}",
        )
    if settings.base.model == embedded.NAME:
        return settings.model_copy(update={"base": settings.base.model_copy(update={"model": None})})
    return settings


@app.command(no_args_is_help=True)
def stats(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files")],
    base: Tokenizer = None,
    as_json: Json = False,
    map_: Map = None,
) -> None:
    """Count rows by kind, language, length and turns, and the words with which questions begin."""
    from rich.console import Console

    from dsr1_tune.data.inspect.stats import show_stats
    from dsr1_tune.data.inspect.stats import stats as count
    from dsr1_tune.data.read.read import read

    with Console(stderr=True).status("reading ..."):
        found = count(read(files, mapping(map_)), token_counter(base))
    if as_json:
        _print_json(found.as_json())
    else:
        show_stats(found, Console())


@app.command()
def init(
    domain: Annotated[str, typer.Option(help="medical, legal, finance, support or general.")] = "general",
    language: Annotated[str, typer.Option(help="en or zh.")] = "en",
    format: Annotated[str, typer.Option(help="How the rows are written; another word lists all.")] = "messages",
    out: Annotated[Path | None, typer.Option(help="The file to write. [default: <domain>.jsonl]")] = None,
) -> None:
    """Write a small data file to start from, with a page that explains its fields and settings to clean it with."""
    from dsr1_tune.data.inspect.templates import init as write_template

    for path in write_template(domain, language, format, out):
        typer.echo(f"wrote {path}")
