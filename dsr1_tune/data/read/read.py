"""Data files in any accepted format → Record, Preference, Feedback, Prompt; a bad row → Drop with place and fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from dsr1_tune.data.read.calling.nulls import Filling
from dsr1_tune.data.read.files import Source, identify, is_one_object, raw_rows
from dsr1_tune.data.read.formats import Names, Shape, check_mapping, listed, shape_of, shown, unseen
from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.labels import labels_of
from dsr1_tune.data.read.missing import Missing
from dsr1_tune.data.read.rows import Interpreter, Learned
from dsr1_tune.data.read.unrecognised import ROWS, unrecognised_lines, unrecognised_object, unrecognised_rows
from dsr1_tune.data.record import Drop, Prompt, Row
from dsr1_tune.errors import DataError

HEAD_ROWS = 100


@dataclass(frozen=True, slots=True)
class Reading:
    """One file being read: what it turned out to be, and its rows to come.

    `formats` counts the rows by format, as they are read: more than one name means that formats are mixed.
    """

    source: Source
    format: str
    rows: Iterator[Row | Drop]
    formats: Counter[str] = field(default_factory=Counter)


def read(files: Sequence[Path], mapping: Mapping[str, str] | None = None) -> Iterator[Row | Drop]:
    """Every row of every file, in order. `mapping` names other columns, ours first: {"answer": "reply"}.

    Raises DataError for a file that is no data or cannot be read, and for a mapped column that no row has.
    """
    for reading in open_files(files, mapping):
        yield from reading.rows


def open_files(files: Sequence[Path], mapping: Mapping[str, str] | None = None) -> Iterator[Reading]:
    """Each file in turn; all of them are looked at before the first is read. Consume one before asking for the next."""
    columns: set[str] = set()
    names = check_mapping(mapping)
    for source in identify_all(files):
        learned, raws = learn(source, names)
        interpreter = Interpreter(learned)
        rows = (raw if isinstance(raw, Drop) else interpreter(raw) for raw in raws)
        yield Reading(source, learned.format, rows, interpreter.formats)
        columns |= interpreter.columns
    check_columns(mapping, columns)


def check_columns(mapping: Mapping[str, str] | None, columns: Collection[str]) -> None:
    """DataError where a mapped column is none of `columns`, which are those of all rows of all files."""
    if missing := unseen(tuple((mapping or {}).items()), columns):
        said = ", ".join(f"{ours}={column}" for ours, column in missing)
        known = listed(sorted(columns), 50) or "none"
        raise DataError(f"--map {said}: no row has such a field", hint=f"the fields are: {known}")


def identify_all(files: Sequence[Path]) -> list[Source]:
    """All the files, or one error that says what is wrong with each."""
    if not files:
        raise DataError("no data file is given", hint="name one, for example --data medical.json")
    twice = [str(file) for file, times in Counter(file.resolve() for file in files).items() if times > 1]
    if twice:
        raise DataError(f"{', '.join(twice)}: named twice", hint="name each data file once")
    sources: list[Source] = []
    problems: list[DataError] = []
    for file in files:
        try:
            sources.append(identify(file))
        except DataError as error:
            problems.append(error)
    if len(problems) > 1:
        hints = dict.fromkeys(error.hint for error in problems)
        raise DataError("\n".join(error.message for error in problems), hint="; ".join(hints))
    if problems:
        raise problems[0]
    return sources


def learn(source: Source, names: Names) -> tuple[Learned, Iterator[Raw | Drop]]:
    """What the first rows of a file say about all of them; and all the rows.

    Raises DataError for a file without rows, for a table without the right columns and for what is no data set.
    """
    raws = raw_rows(source)
    head = list(islice(raws, HEAD_ROWS))
    if not head:
        raise DataError(f"{source.path}: holds no rows", hint="write rows into it, or leave the file out")
    usual = _usual_shape(head, names)
    values = [raw.value for raw in head if isinstance(raw, Raw) and isinstance(raw.value, dict)]
    missing = Missing.learn(values, usual, source.layout == "CSV")
    labels = labels_of([missing.blanked(value, []) for value in values], names)
    filling = Filling(is_arrow=source.layout == "Parquet")
    interpreter = Interpreter(Learned(names, labels=labels, missing=missing, filling=filling))
    outcomes = [interpreter(raw) for raw in head if isinstance(raw, Raw)]
    if not interpreter.formats:
        _refuse_unrecognised(source, head, names)
    if source.layout in ("CSV", "Parquet") and not interpreter.formats:
        _must_have_columns(source, head, names)
    # Where most of the first rows have a question only, a row without an answer is no mistake.
    usable = [outcome for outcome in outcomes if not isinstance(outcome, Drop)]
    are_prompts = sum(isinstance(outcome, Prompt) for outcome in usable) > len(usable) / 2
    format = next((name for name, _ in interpreter.formats.most_common(1)), "")
    format = "prompts" if are_prompts else format
    filling = filling if filling.is_arrow else Filling.learn(usable)
    return Learned(names, usual, are_prompts, format, labels, missing, filling), chain(head, raws)


def _refuse_unrecognised(source: Source, head: Sequence[Raw | Drop], names: Names) -> None:
    """DataError for a file of which no row is a question or an answer, if it is plain what it is instead."""
    values = [raw.value for raw in head if isinstance(raw, Raw)]
    if len(head) == len(values) == 1 and isinstance(values[0], dict) and is_one_object(source):
        shape = shape_of(tuple(values[0]), names)
        if isinstance(shape, Drop) and shape.code == "unknown_fields":
            what, fix = unrecognised_object(values[0])
            raise DataError(f"{source.path}: is {what}", hint=fix)
    unreadable = [str(raw.row) for raw in head if isinstance(raw, Drop)]
    if what := unrecognised_rows(values) if values else unrecognised_lines(unreadable):
        raise DataError(f"{source.path}: looks like {what}, not questions and answers", hint=ROWS)


def _usual_shape(head: Sequence[Raw | Drop], names: Names) -> Shape | None:
    rows = (raw.value for raw in head if isinstance(raw, Raw) and isinstance(raw.value, dict))
    shapes = Counter(shape for row in rows if isinstance(shape := shape_of(tuple(row), names), Shape))
    return next((shape for shape, _ in shapes.most_common(1)), None)


def _must_have_columns(source: Source, head: Sequence[Raw | Drop], names: Names) -> None:
    """A table has the same columns in every row, so that wrong ones are the file's fault, not the rows'."""
    first = next((raw.value for raw in head if isinstance(raw, Raw)), None)
    if first is None:
        return
    why = shape_of(tuple(first), names)
    if isinstance(why, Drop):
        columns = listed([repr(shown(column)) for column in first])
        raise DataError(f"{source.path}: {why.detail}; its columns are {columns}", hint=why.fix)
