"""Data files cut into chunks that processes can share: each is read as it would be in its place in the whole file.

Where a chunk begins and ends depends on the files and `max_bytes` alone, never on the number of workers.
"""

from __future__ import annotations

import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsr1_tune.data.read import json_rows
from dsr1_tune.data.read.files import Source, is_plain_lines, said_plainly
from dsr1_tune.data.read.formats import check_mapping
from dsr1_tune.data.read.json_rows import Raw
from dsr1_tune.data.read.read import identify_all, learn
from dsr1_tune.data.read.rows import Interpreter, Learned
from dsr1_tune.data.record import Drop, Place, Row
from dsr1_tune.errors import DataError

CHUNK_BYTES = 2 << 20
"""Small enough that the arrays over a chunk's characters are not given back to the system after every step."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some successive rows of a file, and all it takes to interpret them.

    JSON lines in plain UTF-8 are left on disk, from byte `start` to `end`: whoever takes the chunk reads them. Rows
    of any other layout, which only reads from its beginning, are carried along: `carried` holds (line, value) or Drop.
    `number` counts the chunks of all files; `first_line` is the line at byte `start`, `first_index` the first row's.
    """

    source: Source
    learned: Learned
    first_line: int
    first_index: int
    num_rows: int
    start: int = 0
    end: int = 0
    carried: tuple[tuple[int, Any] | Drop, ...] | None = None
    number: int = 0


def chunks(
    files: Sequence[Path], mapping: Mapping[str, str] | None = None, max_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """The files' rows in order, in chunks of about `max_bytes`; a single row may be larger.

    Raises DataError as `read` does, except for mapped columns: hand the columns of all chunks to `check_columns`.
    """
    return cut(open_sources(files, mapping), mapping, max_bytes)


def open_sources(files: Sequence[Path], mapping: Mapping[str, str] | None = None) -> list[Source]:
    """Look at every file; one error says what is wrong with each."""
    check_mapping(mapping)
    return identify_all(files)


def cut(
    sources: Sequence[Source], mapping: Mapping[str, str] | None = None, max_bytes: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """Chunks of files that are already looked at."""
    names = check_mapping(mapping)
    number = 0
    for source in sources:
        learned, raws = learn(source, names)
        on_disk = is_plain_lines(source)
        pieces = _on_disk(source, learned, max_bytes) if on_disk else _carried(source, learned, raws, max_bytes)
        for chunk in pieces:
            yield replace(chunk, number=number)
            number += 1


def read_chunk(chunk: Chunk) -> tuple[list[Row | Drop], Interpreter]:
    """The chunk's rows, with the places that they have in the file, and who knows their formats and columns.

    Raises DataError where the file is not any more what it was when it was cut.
    """
    interpreter = Interpreter(chunk.learned)
    raws = _from_disk(chunk) if chunk.carried is None else _unpacked(chunk)
    with without_garbage_collection():
        rows = [raw if isinstance(raw, Drop) else interpreter(raw) for raw in raws]
    if len(rows) != chunk.num_rows:
        raise _changed(chunk)
    return rows, interpreter


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Rows hold no cycles: looking for some among ever more of them takes a sixth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _on_disk(source: Source, learned: Learned, max_bytes: int) -> Iterator[Chunk]:
    """Cut at line feeds, and count lines and rows on the way."""
    start, line, index = 0, 1, 0
    with said_plainly(source.path), source.path.open("rb") as file:
        while block := file.read(max_bytes):
            if not block.endswith(b"\n"):
                block += file.readline()
            # Only "\n" ends a line: bytes.splitlines also splits at "\r".
            lines = block.split(b"\n")
            num_rows = sum(map(json_rows.is_row, lines))
            if num_rows:
                yield Chunk(source, learned, line, index, num_rows, start, start + len(block))
            start, line, index = start + len(block), line + len(lines) - 1, index + num_rows


def _from_disk(chunk: Chunk) -> Iterator[Raw | Drop]:
    path = chunk.source.path
    with said_plainly(path), path.open("rb") as file:
        file.seek(chunk.start)
        block = file.read(chunk.end - chunk.start)
    if len(block) != chunk.end - chunk.start:
        raise _changed(chunk)
    return json_rows.lines(io.BytesIO(block), str(path), chunk.first_line, chunk.first_index)


def _changed(chunk: Chunk) -> DataError:
    return DataError(f"{chunk.source.path}: was changed while it was read", hint="run again, and leave it alone")


def _carried(source: Source, learned: Learned, raws: Iterator[Raw | Drop], max_bytes: int) -> Iterator[Chunk]:
    """Read the file here, and send its rows along."""
    rows: list[tuple[int, Any] | Drop] = []
    index = num_bytes = 0
    for raw in raws:
        rows.append(raw if isinstance(raw, Drop) else (raw.place.line, raw.value))
        num_bytes += _weight(raw.row if isinstance(raw, Drop) else raw.value)
        if num_bytes >= max_bytes:
            yield _packed(source, learned, index, rows)
            index += len(rows)
            rows, num_bytes = [], 0
    if rows:
        yield _packed(source, learned, index, rows)


def _packed(source: Source, learned: Learned, index: int, rows: list[tuple[int, Any] | Drop]) -> Chunk:
    first = rows[0]
    line = first[0] if isinstance(first, tuple) else first.place.line if first.place else 0
    return Chunk(source, learned, line, index, len(rows), carried=tuple(rows))


def _unpacked(chunk: Chunk) -> Iterator[Raw | Drop]:
    """The rows as they were read: every one, good or bad, has the next index."""
    file = str(chunk.source.path)
    for index, row in enumerate(chunk.carried or (), chunk.first_index):
        yield row if isinstance(row, Drop) else Raw(row[1], Place(file, row[0], index))


def _weight(value: Any) -> int:
    """About how many bytes a value takes."""
    if isinstance(value, (str, bytes)):
        return len(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return 8 + sum(map(_weight, inside))
