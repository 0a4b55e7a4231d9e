"""Weights on disk, read and written one tensor at a time: no more than one is ever in memory.

safetensors files are read with plain reads in place of a memory map, whose pages would count as memory used, and are
written header first, so that a shard of any size needs no memory. A checkpoint that is made of another one, such as a
merged or a quantized one, has the same few methods (`Weights`); what it leaves as it was is copied by the kernel.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.index import COPY_AGAIN, INDEX, ONE_FILE, weight_files

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of number formats."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # safetensors' own limit
_AHEAD = 64 << 20  # bytes that are computed before they are written
_PIECE = 8 << 20
_CANNOT_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True)
class Spec:
    """What a stored tensor is: its number format, as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Spec:
        """That of a tensor in memory."""
        return cls(NAMES[tensor.dtype], tuple(tensor.shape))

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """What it takes on disk."""
        return self.num_elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are stored: in `file` from `begin` to `end`."""

    file: Path
    begin: int
    end: int


class Weights(Protocol):
    """Named tensors in shards, each read when it is asked for."""

    @property
    def shards(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the tensors in each file, in the order in which they are written."""

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU and the caller's own."""

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are on disk; None if they are yet to be computed."""


class Checkpoint:
    """The weights of a model folder. Raises ModelError for files that are missing, damaged or cut off."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, tuple[Spec, Stored]] = {}
        self.shards: dict[str, tuple[str, ...]] = {}
        for file in weight_files(folder):
            header = read_header(folder / file)
            self.shards[file] = tuple(header)
            self._found |= header

    def __contains__(self, name: object) -> bool:
        return name in self._found

    @property
    def names(self) -> Iterable[str]:
        """Of all tensors."""
        return self._found.keys()

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""
        return self._found[name][0]

    def stored(self, name: str) -> Stored:
        """Where its bytes are on disk."""
        return self._found[name][1]

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU."""
        return read_stored(*self._found[name])

    def part(self, rows: Mapping[str, range | None]) -> Checkpoint:
        """Of the same files the tensors named alone, each whole or those of its rows (dimension 0) that are given."""
        found = copy(self)
        found._found = {name: _of_rows(*self._found[name], rows[name]) for name in self._found if name in rows}
        found.shards = {file: tuple(n for n in names if n in rows) for file, names in self.shards.items()}
        return found

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(spec.num_bytes for spec, _ in self._found.values())


def read_header(file: Path) -> dict[str, tuple[Spec, Stored]]:
    """What a safetensors file holds, in the order of the bytes. Raises ModelError if it is damaged or cut off."""
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, _MAX_HEADER):
                raise ValueError("its header is longer than the file")
            tree: dict[str, Any] = json.loads(stream.read(length))
        tree.pop("__metadata__", None)
        start = 8 + length
        found = {
            name: (
                Spec(facts["dtype"], tuple(facts["shape"])),
                Stored(file, start + facts["data_offsets"][0], start + facts["data_offsets"][1]),
            )
            for name, facts in sorted(tree.items(), key=lambda item: item[1]["data_offsets"])
        }
        for name, (spec, stored) in found.items():
            if spec.dtype not in DTYPES:
                raise ValueError(f"{name} is in the unknown format {spec.dtype}")
            if stored.end - stored.begin != spec.num_bytes or stored.end > size:
                raise ValueError(f"it is cut off: {name} reaches beyond its end or has another size than it says")
    except FileNotFoundError:
        raise ModelError(f"{file}: is missing", hint=COPY_AGAIN) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: is damaged: {error}", hint=COPY_AGAIN) from error
    return found


def _of_rows(spec: Spec, stored: Stored, rows: range | None) -> tuple[Spec, Stored]:
    """Where some of a stored tensor's rows are, which are neighbours; None for all."""
    if rows is None:
        return spec, stored
    size = spec.num_bytes // spec.shape[0]
    begin = stored.begin + rows.start * size
    return Spec(spec.dtype, (len(rows), *spec.shape[1:])), replace(stored, begin=begin, end=begin + len(rows) * size)


def read_stored(spec: Spec, stored: Stored) -> Tensor:
    """The tensor whose bytes are stored there. Raises ModelError if the file has become shorter."""
    data = torch.empty(spec.num_bytes, dtype=torch.uint8)
    view = memoryview(data.numpy())
    with stored.file.open("rb", buffering=0) as stream:
        stream.seek(stored.begin)
        done = 0
        while done < len(view):
            count = stream.readinto(view[done:])
            if not count:
                raise ModelError(f"{stored.file}: is cut off", hint=COPY_AGAIN)
            done += count
    return data.view(DTYPES[spec.dtype]).reshape(spec.shape)


def write_weights(
    weights: Weights, folder: Path, advance: Callable[[int], None] = lambda num_bytes: None, num_threads: int = 1
) -> None:
    """Write shards, and an index where there are several, to `folder`; `advance` counts the bytes written.

    With several threads each computes a tensor of its own, as far as `weights` can be read by several at once: many
    small tensors are faster so than one after the other on all cores.

    Raises ModelError as reading does, and OSError, with the file's name, if there is no room.
    """
    index: dict[str, str] = {}
    total = 0
    for file, names in weights.shards.items():
        specs = {name: weights.spec(name) for name in names}
        try:
            with (folder / file).open("wb") as out:
                out.write(_header(specs))
                out.flush()
                for name, tensor in _in_turn(weights, specs, num_threads):
                    _write_one(weights.stored(name) if tensor is None else tensor, name, specs[name], out.fileno())
                    advance(specs[name].num_bytes)
                os.fsync(out.fileno())
        except OSError as error:
            error.filename = error.filename or str(folder / file)
            raise
        index |= dict.fromkeys(names, file)
        total += sum(spec.num_bytes for spec in specs.values())
    if list(weights.shards) != [ONE_FILE]:
        tree = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / INDEX).write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def _header(specs: Mapping[str, Spec]) -> bytes:
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, spec in specs.items():
        end = begin + spec.num_bytes
        tree[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _in_turn(weights: Weights, specs: Mapping[str, Spec], num_threads: int) -> Iterator[tuple[str, Tensor | None]]:
    """Each name with its tensor, or None for one that can be copied; the next few are computed meanwhile."""
    if num_threads == 1:
        yield from ((name, None if weights.stored(name) else weights.read(name)) for name in specs)
        return
    waiting: deque[tuple[str, Future[Tensor] | None]] = deque()
    held = 0
    with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for name, spec in specs.items():
                while waiting and held + spec.num_bytes > _AHEAD:
                    held -= specs[waiting[0][0]].num_bytes
                    yield _taken(waiting)
                waiting.append((name, None if weights.stored(name) else pool.submit(weights.read, name)))
                held += spec.num_bytes
            while waiting:
                yield _taken(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _taken(waiting: deque[tuple[str, Future[Tensor] | None]]) -> tuple[str, Tensor | None]:
    name, future = waiting.popleft()
    return name, future.result() if future else None


def _write_one(what: Tensor | Stored | None, name: str, spec: Spec, out: int) -> None:
    """The bytes of one tensor at the end of the open file `out`."""
    if isinstance(what, Stored):
        with what.file.open("rb") as source:
            _copy(source.fileno(), what.begin, what.end - what.begin, out)
        return
    assert what is not None
    if Spec.of(what) != spec:
        raise AssertionError(f"{name} was to be {spec}, and is {Spec.of(what)}")
    view = memoryview(what.contiguous().reshape(-1).view(torch.uint8).numpy())
    done = 0
    while done < len(view):
        done += os.write(out, view[done:])


def _copy(source: int, begin: int, count: int, out: int) -> None:
    """Bytes from one open file to the end of another, by the kernel where it can."""
    can_copy = hasattr(os, "copy_file_range")
    while count:
        done = 0
        if can_copy:
            try:
                done = os.copy_file_range(source, out, count, offset_src=begin)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
            can_copy = done > 0
        if not done:
            piece = os.pread(source, min(count, _PIECE), begin)
            if not piece:
                raise ModelError("a weight file became shorter while it was copied", hint=COPY_AGAIN)
            done = os.write(out, piece)
        begin, count = begin + done, count - done
