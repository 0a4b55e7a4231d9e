"""Which rows two models are compared on: given ones, or those that their run held out, and a small general set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsr1_tune.config import Compare, Encoding, TuneRun
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Record
from dsr1_tune.errors import DataError, RunError
from dsr1_tune.export import lineage
from dsr1_tune.models.ref import local_path
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.kept_rows import kept_records
from dsr1_tune.text.amount import amount

GENERAL = Path(__file__).with_name("general.jsonl")
"""Facts, everyday questions, small sums and rewriting, in Chinese and English: what no training should lose."""
MAX_TOKENS = 2048
"""Longest row, where no run says otherwise."""


@dataclass(frozen=True)
class RowSet:
    """Rows that something is measured on, and what they are, for people."""

    name: str
    records: tuple[Record, ...]
    max_tokens: int
    """Longer ones are left out."""


@dataclass(frozen=True)
class Rows:
    """What two models are compared on, and how it is encoded: as the run did, where there is one."""

    domain: RowSet | None
    general: RowSet
    asked: tuple[Record, ...]
    """Rows that both models answer."""
    encoding: Encoding
    remarks: tuple[str, ...] = ()


def choose_rows(models: Sequence[str | Path | None], compare: Compare) -> Rows:
    """The rows that `compare` names, or the held-out ones of the run that one of the models came from.

    Raises DataError for files without a question and its answer.
    """
    remarks: list[str] = []
    run = next((found for found in map(run_of, models) if found is not None), None)
    max_tokens, encoding = _encoding(run)
    domain = None
    if found := _domain(run, compare, remarks):
        domain = RowSet(found[0], _drawn(found[1], compare.max_rows, compare.seed), max_tokens)
    general = RowSet(
        "built-in general rows" if not compare.general else _names(compare.general),
        _drawn(_read(compare.general or (GENERAL,), remarks), compare.max_rows, compare.seed),
        max(max_tokens, MAX_TOKENS),
    )
    asked = _drawn((domain or general).records, compare.answers, compare.seed) if compare.answers else ()
    return Rows(domain, general, asked, encoding, tuple(remarks))


def run_of(model: str | Path | None) -> RunFolder | None:
    """The run that a model came from, if it is still there: the folder, an adapter's, or that of lineage.json."""
    if model is None:
        return None
    folder = local_path(str(model))
    folder = folder.parent if folder.is_file() else folder
    try:
        known = lineage.read(folder)
    except RunError:
        known = None  # whoever loads the model says so
    train = known.stage("train") if known else None
    trained = [Path(str(train.facts.get("run")))] if train else []
    places = (folder, folder.parent, *trained)
    return next((RunFolder(p) for p in places if (p / "manifest.json").is_file() and (p / "data").is_dir()), None)


def _domain(run: RunFolder | None, compare: Compare, remarks: list[str]) -> tuple[str, Sequence[Record]] | None:
    """What the domain's rows are, and they themselves."""
    if compare.data:
        return _names(compare.data), _read(compare.data, remarks)
    if run is None:
        remarks.append("no domain rows: neither model came from a run that is still there; --data gives some")
        return None
    if held_out := kept_records(run, "eval"):
        return f"held-out rows of {run.path}", held_out
    remarks.append(f"{run.path} held no rows out: its training rows, which it knows, stand for the domain")
    return f"training rows of {run.path}", kept_records(run, "train")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files)


def _read(files: Sequence[Path], remarks: list[str]) -> list[Record]:
    """The conversations with an answer in the files, and a remark where some rows are none."""
    rows = list(read(list(files)))
    records = [row for row in rows if isinstance(row, Record) and row.answer.strip()]
    if not records:
        raise DataError(
            f"{_names(files)}: holds no question with its answer, of {amount(len(rows), 'row')}",
            hint=f"dsr1-tune data check {files[0]} says what is wrong with which row",
        )
    if lost := len(rows) - len(records):
        remarks.append(
            f"left out of {_names(files)}, as no question with its answer: {lost:,} of {amount(len(rows), 'row')}"
        )
    return records


def _drawn(records: Sequence[Record], number: int, seed: int) -> tuple[Record, ...]:
    """At most so many of them, in their order."""
    if len(records) <= number:
        return tuple(records)
    return tuple(records[at] for at in sorted(random.Random(seed).sample(range(len(records)), number)))


def _encoding(run: RunFolder | None) -> tuple[int, Encoding]:
    """The longest row, and how rows become tokens, as the run had it."""
    if run is None:
        return MAX_TOKENS, Encoding()
    tree = run.manifest().get("config", {})
    config = TuneRun.model_validate({name: value for name, value in tree.items() if name in TuneRun.model_fields})
    return config.schedule.max_tokens, config.encoding
