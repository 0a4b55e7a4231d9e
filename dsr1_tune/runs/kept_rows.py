"""The rows that a run left behind, encoded as they were when it trained: what later stages measure and calibrate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from dsr1_tune.config import TuneRun
from dsr1_tune.data.encode import Example, encode_all
from dsr1_tune.data.read import read
from dsr1_tune.data.record import Record, Row
from dsr1_tune.errors import RunError
from dsr1_tune.runs.folder import RunFolder

AnyRow = TypeVar("AnyRow", bound=Row)


def kept_rows(folder: RunFolder, which: Literal["train", "eval"], kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of a kind that were trained on or held out. Raises RunError if the run's folder lacks them."""
    file = folder.data / f"{which}.jsonl"
    if not file.is_file():
        raise RunError(f"{file}: is missing", hint="copy the run's whole folder; without it nothing can be compared")
    return rows_of(file, kind)


def kept_records(folder: RunFolder, which: Literal["train", "eval"]) -> list[Record]:
    """The records that were trained on or held out. Raises RunError if the run's folder lacks them."""
    return kept_rows(folder, which, Record)


def rows_of(file: Path, kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of one kind of a data file in any accepted format; the others are left out."""
    if not file.stat().st_size:
        return []
    return [row for row in read([file]) if isinstance(row, kind)]


def records_of(file: Path) -> list[Record]:
    """The records of a data file in any accepted format; those without an answer are left out."""
    return rows_of(file, Record)


def probe_examples(folder: RunFolder, tokenizer: Any) -> list[Example]:
    """What the trained model was checked on: the held-out records, or eight of the others where there were none."""
    config = TuneRun.model_validate({k: v for k, v in folder.manifest()["config"].items() if k in TuneRun.model_fields})
    held_out = kept_records(folder, "eval")
    records = held_out or kept_records(folder, "train")
    examples = encode_all(records, tokenizer, config.schedule.max_tokens, config.sequences).examples
    return examples if held_out else examples[:8]
