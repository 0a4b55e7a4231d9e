"""Data files in any accepted format → Record, Preference and Prompt; every bad row → Drop with its place and mend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from dsr1_tune.data.files import Source, identify, raw_rows
from dsr1_tune.data.formats import Names, Shape, check_mapping, shape_of, unseen
from dsr1_tune.data.json_rows import Raw
from dsr1_tune.data.record import Drop, Prompt, Row
from dsr1_tune.data.rows import interpret
from dsr1_tune.errors import DataError

HEAD_ROWS = 100


@dataclass(frozen=True, slots=True)
class Reading:
    """One file being read: what it turned out to be, and its rows to come."""

    source: Source
    format: str
    rows: Iterator[Row | Drop]


def read(files: Sequence[Path], mapping: Mapping[str, str] | None = None) -> Iterator[Row | Drop]:
    """Every row of every file, in order. `mapping` names other columns, ours first: {"answer": "reply"}.

    Raises DataError for a file that is no data or cannot be read, and for a mapped column that no row has.
    """
    for reading in open_files(files, mapping):
        yield from reading.rows


def open_files(files: Sequence[Path], mapping: Mapping[str, str] | None = None) -> Iterator[Reading]:
    """Each file in turn; all of them are looked at before the first is read. Consume one before asking for the next."""
    mapping = mapping or {}
    check_mapping(mapping)
    names: Names = tuple(mapping.items())
    columns: set[str] = set()
    for source in _identify_all(files):
        yield _open(source, names, columns)
    if missing := unseen(names, columns):
        said = ", ".join(f"{ours}={column}" for ours, column in missing)
        known = ", ".join(sorted(columns)) or "none"
        raise DataError(f"--map {said}: no row has such a field", hint=f"the fields are: {known}")


def _identify_all(files: Sequence[Path]) -> list[Source]:
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


def _open(source: Source, names: Names, columns: set[str]) -> Reading:
    """Look at the first rows to learn what the file's rows are like, then read them all."""
    raws = _noting_columns(raw_rows(source), columns)
    head = list(islice(raws, HEAD_ROWS))
    if not head:
        raise DataError(f"{source.path}: holds no rows", hint="write rows into it, or leave the file out")
    usual = _usual_shape(head, names)
    if source.layout in ("CSV", "Parquet"):
        _must_have_columns(source, head, usual, names)
    prompts = _are_prompts(head, names)
    kind = "" if usual is None else "prompts" if prompts else usual.name
    rows = (raw if isinstance(raw, Drop) else interpret(raw, names, usual, prompts) for raw in chain(head, raws))
    return Reading(source, kind, rows)


def _noting_columns(raws: Iterator[Raw | Drop], columns: set[str]) -> Iterator[Raw | Drop]:
    """The same rows; the names of their fields are added to `columns`."""
    for raw in raws:
        if isinstance(raw, Raw) and isinstance(raw.value, dict):
            columns.update(raw.value)
        yield raw


def _usual_shape(head: Sequence[Raw | Drop], names: Names) -> Shape | None:
    """The shape that most of the first rows have."""
    shapes: Counter[Shape] = Counter()
    for raw in head:
        if isinstance(raw, Raw) and isinstance(raw.value, dict):
            shape = shape_of(tuple(raw.value), names)
            if isinstance(shape, Shape):
                shapes[shape] += 1
    return shapes.most_common(1)[0][0] if shapes else None


def _are_prompts(head: Sequence[Raw | Drop], names: Names) -> bool:
    """Whether most of the first rows have a question only: then a row without an answer is no mistake."""
    outcomes = [interpret(raw, names) for raw in head if isinstance(raw, Raw)]
    usable = [outcome for outcome in outcomes if not isinstance(outcome, Drop)]
    return sum(isinstance(outcome, Prompt) for outcome in usable) > len(usable) / 2


def _must_have_columns(source: Source, head: Sequence[Raw | Drop], usual: Shape | None, names: Names) -> None:
    """A table has the same columns in every row, so that wrong ones are the file's fault, not the rows'."""
    first = next((raw.value for raw in head if isinstance(raw, Raw)), None)
    if usual is not None or first is None:
        return
    why = shape_of(tuple(first), names)
    if isinstance(why, Drop):
        listed = ", ".join(map(repr, first))
        raise DataError(f"{source.path}: {why.detail}; its columns are {listed}", hint=why.fix)
