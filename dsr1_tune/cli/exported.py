"""`dsr1-tune compare`, `card`, `verify` and `check-serve`: what can be said of models that were made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from dsr1_tune.cli import streams
from dsr1_tune.cli.options import ConfigFile, MaxGeneralDrop, MaxLossIncrease, MinAgreement, Sets, compose, gates
from dsr1_tune.text.amount import amount

_MODEL = "A run folder, an adapter, a model folder, a GGUF file, a Hub id, or embedded."
_NOT_KNOWN = 3  # the exit code of check-serve; 2 is taken by what cannot be checked
_SAID = {
    "loads": "{engine} loads {place}",
    "does not load": "{engine} does not load {place}",
    "not known": "it is not known here whether {engine} loads {place}",
}
Exported = Annotated[Path, typer.Argument(metavar="DIR", help="What merge, quantize or export wrote.")]


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"Before. {_MODEL}")],
    b: Annotated[str, typer.Argument(metavar="B", help="After: any of the same.")],
    data: Annotated[list[Path] | None, typer.Option(help="Domain rows. [default: what the run held out]")] = None,
    max_loss_increase: MaxLossIncrease = None,
    min_agreement: MinAgreement = None,
    max_general_drop: MaxGeneralDrop = None,
    out: Annotated[Path | None, typer.Option(help="A folder for compare.json and compare.html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json in place of the table.")] = False,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Compare two models: loss, agreement, answers, scores, size and speed, and gates that B has to pass.

    Exit code 1 if a gate is missed. --set compare.answers=0 leaves the answers out, which take most of the time;
    `dsr1-tune settings` lists everything under compare and gates.
    """
    from rich.console import Console

    from dsr1_tune.config import CompareRun
    from dsr1_tune.models import embedded

    flags = {"compare.data": data, **gates(max_loss_increase, min_agreement, max_general_drop)}
    settings = compose(CompareRun, config, sets, flags)
    if out is not None:
        _check_out(out)

    from dsr1_tune.export.compare import run

    console = Console(stderr=True, quiet=True) if as_json else Console()
    before, after = (None if name == embedded.NAME else name for name in (a, b))
    found = run(before, after, settings.compare, settings.gates, out, console)
    if as_json:
        streams.say_json(json.dumps(found.as_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    for line in found.missed:
        print(f"missed: {line}", file=sys.stderr)
    if found.missed:
        raise typer.Exit(1)


def _check_out(out: Path) -> None:
    """Only an earlier comparison is replaced: more files in a model's folder would make `verify` fail."""
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


def card(
    folder: Exported, language: Annotated[str, typer.Option(help="en, zh, or auto: that of the data.")] = "auto"
) -> None:
    """Write README.md, a model card with what is known of the model: data, training, merge, quantization, engines."""
    from dsr1_tune.errors import ConfigError

    if language not in ("auto", "en", "zh"):
        raise ConfigError(f"--language: {language} is unknown", hint="--language en, zh or auto")

    from dsr1_tune.export.card import run

    typer.echo(f"The model card: {run(folder, language)}")  # type: ignore[arg-type]


def verify(folder: Exported) -> None:
    """Hash every file of an exported model again and name those that are missing, changed or extra.

    What it was made of is looked at too, for information. Exit code 0 if all is well, 1 if not.
    """
    from rich.console import Console

    from dsr1_tune.export import lineage

    known = lineage.known(folder)
    total = sum(int(facts.get("bytes", 0)) for facts in known.files.values())
    with Console(stderr=True).status(f"hashing {total / 2**30:,.1f} GiB ..."):
        differences = lineage.verify(folder)
        origins = lineage.origins(known)
    for difference in differences:
        typer.echo(str(difference))
    told = f"{len(differences)} differ" if differences else "as they were written"
    typer.echo(f"{amount(len(known.files), 'file')}: {told}")
    others = [origin for origin in origins if origin.state != "the same"]
    if origins:
        typer.echo(
            f"still the same of what it was made of: {len(origins) - len(others)} of {amount(len(origins), 'file')}"
        )
    for origin in others:
        typer.echo(f"  {origin.state}: {origin.file} ({origin.stage})")
    if differences:
        raise typer.Exit(1)


def check_serve(
    place: Annotated[Path, typer.Argument(metavar="DIR", help="A model, an adapter, a run or a .gguf file.")],
    engine: Annotated[str, typer.Option(help="vllm, sglang, llama.cpp or transformers.")] = "vllm",
    version: Annotated[str | None, typer.Option("--engine-version", help="[default: the release looked at]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of text")] = False,
) -> None:
    """Tell whether an engine's released version loads this, with which command; and if not, what it does load.

    Exit code 0 if it loads, 1 if it does not, 3 if that is not known here.
    """
    from dsr1_tune.export.check_serve import run

    verdict = run(place, engine, version)
    if as_json:
        names = ("engine", "version", "answer", "loads", "problems", "unknown", "remarks", "command", "instead")
        told = {name: getattr(verdict, name) for name in names}
        streams.say_json(json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    else:
        said = _SAID[verdict.answer].format(engine=f"{verdict.title} {verdict.version}", place=place)
        lines = [f"{said}, {verdict.artifact.what}"]
        lines += [f"  because {line}" for line in (*verdict.problems, *verdict.unknown)]
        lines += [f"  note: {line}" for line in verdict.remarks]
        doing = "serve it with" if verdict.loads else "try it with"
        lines += [f"{doing}: {verdict.command}"] if verdict.command else []
        lines += [f"it does load what this makes: {line}" for line in verdict.instead[-1:]]
        lines[-1:] = [f"first: {line}" for line in verdict.instead[:-1]] + lines[-1:]
        typer.echo("\n".join(lines))
    if verdict.answer != "loads":
        raise typer.Exit(_NOT_KNOWN if verdict.answer == "not known" else 1)
