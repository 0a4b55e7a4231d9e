"""What the portions' scans leave on disk until the end: rows by number, hashes by column, counts.

Every portion is a handful of files that are there as a whole or not at all, so that a killed run goes on where it
was. Held in memory are 60 bytes a row; all else is read when it is needed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from dsr1_tune.data.scan import Counts, Scanned
from dsr1_tune.data.shingles import NUM_BANDS, NUM_HASHES, Hashes, Ints, Prints

_LINES = ("rows", "raws", "drops")


def save(scanned: Scanned, folder: Path, number: int) -> None:
    """Write one portion's outcome; the file that says that it is whole comes last."""
    ends = {}
    for name in _LINES:
        lines: list[bytes] = getattr(scanned, name)
        _put(_path(folder, number, name), b"".join(line + b"\n" for line in lines))
        ends[f"{name}_ends"] = np.cumsum([len(line) + 1 for line in lines], dtype=np.int64)
    _put(_path(folder, number, "sketches"), scanned.sketches.tobytes())
    _put(_path(folder, number, "bands"), scanned.bands.tobytes())
    prints = scanned.prints
    arrays = {field.name: getattr(prints, field.name) for field in fields(prints)} | ends
    for name in ("numbers", "lines", "kinds", "languages", "drop_numbers"):
        arrays[name] = getattr(scanned, name)
    part = _path(folder, number, "part")
    with part.open("wb") as file:
        np.savez(file, counts=np.frombuffer(orjson.dumps(vars(scanned.counts)), np.uint8), **arrays)
    part.replace(_path(folder, number, "npz"))


def is_saved(folder: Path, number: int) -> bool:
    """Whether the portion's outcome is there, whole."""
    return _path(folder, number, "npz").exists()


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:06d}.{name}"


@dataclass(frozen=True)
class Block:
    """One portion's outcome, all but its arrays: where it begins among the kept rows, and how many it has."""

    number: int
    file: str
    first_row: int
    num_rows: int
    counts: Counts


class Spill:
    """The outcomes of all portions, in order; N rows altogether."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        """`files` names the data file of each portion."""
        self._folder = folder
        self.blocks: list[Block] = []
        parts: dict[str, list[npt.NDArray[Any]]] = {}
        num_rows = 0
        for number, file in enumerate(files):
            with np.load(_path(folder, number, "npz")) as saved:
                for name in ("lines", "kinds", "languages", *(field.name for field in fields(Prints))):
                    parts.setdefault(name, []).append(saved[name])
                counts = _counts(saved["counts"].tobytes())
                ends = saved["rows_ends"]
            parts.setdefault("block", []).append(np.full(len(ends), number, np.int32))
            # A portion is a few megabytes; one line may be longer, but not 4 GiB.
            parts.setdefault("ends", []).append(ends.astype(np.uint32))
            self.blocks.append(Block(number, file, num_rows, len(ends), counts))
            num_rows += len(ends)
        whole = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        self.num_rows = num_rows
        self.kinds: npt.NDArray[np.uint8] = whole["kinds"]
        self.languages: npt.NDArray[np.uint8] = whole["languages"]
        self.prints = Prints(*(whole[field.name] for field in fields(Prints)))
        self._lines, self._block, self._ends = whole["lines"], whole["block"], whole["ends"]

    def file_of(self, row: int) -> str:
        """The data file in which a row stands."""
        return self.blocks[self._block[row]].file

    def line_of(self, row: int) -> int:
        """The line on which a row starts."""
        return int(self._lines[row])

    def bands(self, band: int) -> Hashes:
        """All rows' hashes (N) in one band."""
        parts = []
        for block in self.blocks:
            path = _path(self._folder, block.number, "bands")
            parts.append(np.fromfile(path, np.uint64, block.num_rows, offset=8 * band * block.num_rows))
        return np.concatenate(parts)

    def has_bands(self) -> bool:
        """Whether near-duplicates can be looked for."""
        return all(
            _path(self._folder, block.number, "bands").stat().st_size == 8 * NUM_BANDS * block.num_rows
            for block in self.blocks
        )

    def sketches(self, rows: Ints) -> npt.NDArray[np.uint8]:
        """(R, 126) bytes of these rows, which must be in ascending order."""
        found = np.empty((len(rows), NUM_HASHES), np.uint8)
        for block, members in self._by_block(rows):
            read = np.fromfile(_path(self._folder, block.number, "sketches"), np.uint8).reshape(-1, NUM_HASHES)
            found[members] = read[rows[members] - block.first_row]
        return found

    def outputs(self, rows: Ints) -> list[dict[str, Any]]:
        """These rows (ascending) as they will be written."""
        found: list[dict[str, Any]] = []
        for block, members in self._by_block(rows):
            with _path(self._folder, block.number, "rows").open("rb") as file:
                for row in rows[members].tolist():
                    start = int(self._ends[row - 1]) if row > block.first_row else 0
                    found.append(orjson.loads(os.pread(file.fileno(), int(self._ends[row]) - start, start)))
        return found

    def _by_block(self, rows: Ints) -> list[tuple[Block, Ints]]:
        """The blocks that hold these rows, each with the positions of its rows in `rows`."""
        blocks = self._block[rows]
        edges = np.flatnonzero(np.diff(blocks)) + 1
        return [(self.blocks[blocks[part[0]]], part) for part in np.split(np.arange(len(rows)), edges) if len(part)]

    def lines(self, block: Block, name: str) -> list[bytes]:
        """A portion's `rows`, `raws` or `drops`, without their line ends."""
        return _path(self._folder, block.number, name).read_bytes().split(b"\n")[:-1]

    def numbers(self, block: Block, name: str) -> list[int]:
        """The indices in their file of a portion's rows (`numbers`) or drops (`drop_numbers`)."""
        with np.load(_path(self._folder, block.number, "npz")) as saved:
            return list(saved[name].tolist())


def _counts(said: bytes) -> Counts:
    tree = orjson.loads(said)
    return Counts(
        **{name: Counter(value) for name, value in tree.items() if name not in ("num_rows", "examples")},
        num_rows=tree["num_rows"],
        examples=tree["examples"],
    )
