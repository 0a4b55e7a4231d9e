"""The rows that a run left behind, encoded as they were when it trained: what later stages measure and calibrate on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, TypeVar

from dsr1_tune.config import TuneRun
from dsr1_tune.data.encode.example import IGNORED, Example, encode_all
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import Feedback, Preference, Record, Row
from dsr1_tune.errors import RunError
from dsr1_tune.runs.folder import RunFolder

AnyRow = TypeVar("AnyRow", bound=Row)
_ANSWERED: Any = Record | Preference | Feedback


def kept_rows(folder: RunFolder, which: Literal["train", "eval"], kind: type[AnyRow]) -> list[AnyRow]:
    """The rows of a kind that were trained on or held out. Raises RunError if the run's folder lacks them."""
    file = folder.data / f"{which}.jsonl"
    if not file.is_file():
        raise RunError(f"{file}: is missing", hint="copy the run's whole folder; without it nothing can be compared")
    return [row for row in read([file]) if isinstance(row, kind)] if file.stat().st_size else []


def kept_records(folder: RunFolder, which: Literal["train", "eval"]) -> list[Record]:
    """The records that were trained on or held out; of rows that compare answers the good ones.

    Raises RunError if the run's folder lacks them.
    """
    return _good(kept_rows(folder, which, _ANSWERED))


def _good(rows: Iterable[Record | Preference | Feedback]) -> list[Record]:
    """Records as they are, pairs with their chosen answer, and feedback whose answer was liked."""
    return [
        row
        if isinstance(row, Record)
        else Record((*row.prompt, row.chosen if isinstance(row, Preference) else row.completion), row.place, row.tools)
        for row in rows
        if not isinstance(row, Feedback) or row.is_good
    ]


def eval_subset_examples(folder: RunFolder, tokenizer: Any) -> list[Example]:
    """What the trained model was checked on: the held-out records, or eight of the others where there were none."""
    config = TuneRun.model_validate({k: v for k, v in folder.manifest()["config"].items() if k in TuneRun.model_fields})
    held_out = kept_rows(folder, "eval", _ANSWERED)
    rows = held_out or kept_rows(folder, "train", _ANSWERED)
    is_supervised = all(isinstance(row, Record) for row in rows)
    records = _good(rows if held_out or is_supervised else rows[:8])
    examples = encode_all(records, tokenizer, config.schedule.max_tokens, config.encoding).examples
    if not is_supervised:
        examples = list(map(_last_alone, examples))
    return examples if held_out else examples[:8]


def _last_alone(example: Example) -> Example:
    """The same, with nothing learned but the last answer: it is what was compared."""
    end = max(place for place, label in enumerate(example.labels) if label != IGNORED) + 1
    first = max((place + 1 for place in range(end) if example.labels[place] == IGNORED), default=0)
    return replace(example, labels=(IGNORED,) * first + example.labels[first:])
