"""The intermediate store: what the scans of chunks leave on disk until the end; rows, hashes by column, counts.

Every chunk is a file that is there as a whole or not at all, so that a killed run goes on where it
was. Held in memory are 86 bytes a row; all else is read when it is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from dsr1_tune.data.clean.scan import Scanned
from dsr1_tune.data.dedup.exact import Prints
from dsr1_tune.data.dedup.ngrams import NUM_HASHES, Hashes, Ints
from dsr1_tune.data.record import Place
from dsr1_tune.data.report import RowCounts

_LINES = ("rows", "raws", "drops")
_PRINTS = tuple(field.name for field in fields(Prints))


def save(scanned: Scanned, folder: Path, number: int) -> None:
    """Write one chunk's outcome to one file: a line that says what stands where, then the arrays and lines."""
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(scanned.hashes.prints, name) for name in _PRINTS}
    arrays |= {name: getattr(scanned, name) for name in ("numbers", "lines", "stances", "drop_numbers")}
    arrays |= {name: getattr(scanned.hashes, name) for name in ("kinds", "languages", "sketches", "bands")}
    parts: dict[str, bytes] = {}
    for name in _LINES:
        lines: list[bytes] = getattr(scanned, name)
        parts[name] = b"".join([line + b"\n" for line in lines])
    # A chunk is a few megabytes; one row may be longer, but not 4 GiB: its fields are limited.
    arrays["rows_ends"] = np.cumsum([len(line) + 1 for line in scanned.rows], dtype=np.uint32)
    parts |= {name: array.tobytes() for name, array in arrays.items()}
    sizes = {name: len(part) for name, part in parts.items()}
    types = {name: [array.dtype.str, *array.shape] for name, array in arrays.items()}
    head = orjson.dumps({"sizes": sizes, "types": types, "counts": vars(scanned.counts)}) + b"\n"
    waiting = folder / f"{number:06d}.part"
    waiting.write_bytes(head + b"".join(parts.values()))
    waiting.replace(_path(folder, number))


def is_saved(folder: Path, number: int) -> bool:
    """Whether the chunk's outcome is there, whole."""
    return _path(folder, number).exists()


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.scan"


class _File:
    """A chunk's file: what stands where in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            head = orjson.loads(file.readline())
            place = file.tell()
        self.counts: dict[str, Any] = head["counts"]
        self._types: dict[str, list[Any]] = head["types"]
        self._places: dict[str, tuple[int, int]] = {}
        for name, size in head["sizes"].items():
            self._places[name] = (place, size)
            place += size

    def array(self, name: str) -> npt.NDArray[Any]:
        """One of its arrays."""
        kind, *shape = self._types[name]
        return np.frombuffer(self.read(name), kind).reshape(shape)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """One of its parts, or `size` bytes of it from `start` on."""
        place, whole = self._places[name]
        with self.path.open("rb") as file:
            file.seek(place + start)
            return file.read(whole - start if size is None else size)

    def place(self, name: str) -> int:
        """Where one of its parts begins."""
        return self._places[name][0]


Whereabouts = list[tuple[Path, int, list[tuple[int, int]]]]
"""Files, where their rows begin, and the spans of single rows."""


def read_outputs(whereabouts: Whereabouts) -> list[dict[str, Any]]:
    """The rows that stand there."""
    found: list[dict[str, Any]] = []
    for path, place, spans in whereabouts:
        with path.open("rb") as file:
            for start, end in spans:
                file.seek(place + start)
                found.append(orjson.loads(file.read(end - start)))
    return found


@dataclass(frozen=True)
class Block:
    """One chunk's outcome, all but its arrays: where it begins among the kept rows, and how many it has."""

    number: int
    file: str
    first_row: int
    num_rows: int
    counts: RowCounts


class RowStore:
    """The outcomes of all chunks, in order; N rows altogether."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """`files` names the data file of each chunk."""
        self.blocks: list[Block] = []
        self._files: list[_File] = []
        parts: dict[str, list[npt.NDArray[Any]]] = {}
        num_rows = 0
        for number, file in enumerate(files):
            saved = _File(_path(folder, number))
            self._files.append(saved)
            for name in ("lines", "numbers", "kinds", "languages", "stances", "rows_ends", *_PRINTS):
                parts.setdefault(name, []).append(saved.array(name))
            num_here = len(parts["rows_ends"][-1])
            parts.setdefault("block", []).append(np.full(num_here, number, np.int32))
            self.blocks.append(Block(number, file, num_rows, num_here, _counts(saved.counts)))
            num_rows += num_here
        whole = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
        self.num_rows = num_rows
        self.kinds: npt.NDArray[np.uint8] = whole["kinds"]
        self.languages: npt.NDArray[np.uint8] = whole["languages"]
        self.stances: Hashes = whole["stances"]
        self.prints = Prints(*(whole[name] for name in _PRINTS))
        self._numbers: npt.NDArray[Any] = whole["numbers"]
        self._lines, self._block, self._ends = whole["lines"], whole["block"], whole["rows_ends"]

    def place_of(self, row: int) -> Place:
        """Where a row stands in its data file."""
        return Place(self.blocks[self._block[row]].file, int(self._lines[row]), int(self._numbers[row]))

    @property
    def num_bytes(self) -> Ints:
        """How long each row (N) is as it will be written."""
        ends = self._ends.astype(np.int64)
        is_first = np.diff(self._block, prepend=-1) != 0
        return ends - np.where(is_first, 0, np.concatenate(([0], ends[:-1])))

    def bands(self, band: int) -> Hashes:
        """All rows' hashes (N) in one band."""
        parts = [
            np.frombuffer(file.read("bands", 8 * band * block.num_rows, 8 * block.num_rows), np.uint64)
            for file, block in zip(self._files, self.blocks, strict=True)
        ]
        return np.concatenate(parts)

    def has_bands(self) -> bool:
        """Whether near-duplicates can be looked for."""
        return self.num_rows > 0 and self._files[int(self._block[0])].array("bands").size > 0

    def sketches(self, rows: Ints) -> npt.NDArray[np.uint8]:
        """(R, 120) bytes of these rows, which must be in ascending order."""
        found = np.empty((len(rows), NUM_HASHES), np.uint8)
        for block, members in self._by_block(rows):
            found[members] = self._files[block.number].array("sketches")[rows[members] - block.first_row]
        return found

    def outputs(self, rows: Ints) -> list[dict[str, Any]]:
        """These rows (ascending) as they will be written."""
        return read_outputs(self.whereabouts(rows))

    def whereabouts(self, rows: Ints) -> Whereabouts:
        """Where these rows (ascending) stand, for whoever reads them."""
        found: Whereabouts = []
        for block, members in self._by_block(rows):
            spans = [
                (int(self._ends[row - 1]) if row > block.first_row else 0, int(self._ends[row]))
                for row in rows[members].tolist()
            ]
            file = self._files[block.number]
            found.append((file.path, file.place("rows"), spans))
        return found

    def _by_block(self, rows: Ints) -> list[tuple[Block, Ints]]:
        """The blocks that hold these rows, each with the positions of its rows in `rows`."""
        blocks = self._block[rows]
        edges = np.flatnonzero(np.diff(blocks)) + 1
        return [(self.blocks[blocks[part[0]]], part) for part in np.split(np.arange(len(rows)), edges) if len(part)]

    def lines(self, block: Block, name: str) -> list[bytes]:
        """A chunk's `rows`, `raws` or `drops`, without their line ends."""
        return self._files[block.number].read(name).split(b"\n")[:-1]

    def numbers(self, block: Block, name: str) -> list[int]:
        """The indices in their file of a chunk's rows (`numbers`) or drops (`drop_numbers`)."""
        return list(self._files[block.number].array(name).tolist())


def _counts(tree: dict[str, Any]) -> RowCounts:
    plain = ("num_rows", "examples")
    counts: dict[str, Any] = {name: value if name in plain else Counter(value) for name, value in tree.items()}
    return RowCounts(**counts)
