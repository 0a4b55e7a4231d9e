"""`dsr1-tune data clean`, and `dedup` and `split`, which do a part of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dsr1_tune.config import CleanRun

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="JSON, JSONL, CSV, Parquet; also .gz; a.json:0.7 weighs it"),
]
Map = Annotated[
    list[str] | None, typer.Option("--map", metavar="NAME=COLUMN", help="Column names: question=title,answer=reply")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The folder to write. [default: clean/, merged/ or split/<file>]")
]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes. [default: one per core]")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any other setting: dedup.similarity=0.9.", show_default=False),
]
Against = Annotated[
    list[Path] | None, typer.Option("--against", help="Evaluation files that no row may hold a question of.")
]
Tokenizer = Annotated[
    str | None, typer.Option("--base", help="Measure lengths with the tokenizer of this Hub id or folder.")
]


def clean(
    files: Files = [],  # noqa: B006
    out: Out = None,
    rules: Annotated[
        str | None, typer.Option("--rules", metavar="PACK", help="A pack of rules, or a YAML file. [default: general]")
    ] = None,
    privacy: Annotated[
        str | None, typer.Option("--privacy", help="Personal data: off, count, redact or drop. [default: the pack's]")
    ] = None,
    against: Against = None,
    judge: Annotated[bool, typer.Option("--judge", help="Let a small model judge the rows that are left")] = False,
    judge_minutes: Annotated[
        float | None, typer.Option("--judge-minutes", help="Time for the judge. [default: 10]")
    ] = None,
    judge_sample: Annotated[
        float | None, typer.Option("--judge-sample", help="Share of the rows to judge. [default: 1]")
    ] = None,
    base: Tokenizer = None,
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
        "data.rules": rules,
        "privacy.action": privacy,
        "dedup.against": [str(file) for file in against] if against else None,
        "judge.ask": judges or None,
        "judge.minutes": judge_minutes,
        "judge.sample": judge_sample,
        "base": base,
        "engine": engine,
    }
    _clean(_load(files, out, workers, map_, config, sets, flags))


def dedup(
    files: Files = [],  # noqa: B006
    out: Out = None,
    similarity: Annotated[
        float | None, typer.Option("--similarity", help="Share of n-grams that makes a near-duplicate. [default: 0.8]")
    ] = None,
    against: Against = None,
    workers: Workers = None,
    map_: Map = None,
    sets: Sets = None,
) -> None:
    """Merge duplicates and nearly equal rows, and nothing else; duplicates.jsonl shows what was merged with what."""
    flags = {
        "data.rules": "none",
        "privacy.action": "off",
        "data.eval_share": 0.0,
        "dedup.contradictions": False,
        "dedup.similarity": similarity,
        "dedup.against": [str(file) for file in against] if against else None,
    }
    _clean(_load(files, out or _place("merged", files), workers, map_, None, sets, flags))


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
    flags = {"data.rules": "none", "privacy.action": "off", "data.eval_share": eval_share, "seed": seed, **off}
    _clean(_load(files, out or _place("split", files), workers, map_, None, sets, flags))


def _place(folder: str, files: list[Path]) -> Path | None:
    """`merged/medical`, so that the commands do not replace one another's results."""
    return Path(folder) / Path(files[0].name.removesuffix(".gz")).stem if files else None


def _load(
    files: list[Path],
    out: Path | None,
    workers: int | None,
    map_: list[str] | None,
    config: Path | None,
    sets: list[str] | None,
    flags: dict[str, Any],
) -> CleanRun:
    from dsr1_tune.config import CleanRun
    from dsr1_tune.config.load import load_config
    from dsr1_tune.data.read.formats import parse_mapping
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

    from dsr1_tune.data.clean import run
    from dsr1_tune.data.inspect.tables import show_cleaned

    try:
        with Console(stderr=True).status("reading ...") as status:
            cleaned = run.run(config, status.update, token_counter(config.base))
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
