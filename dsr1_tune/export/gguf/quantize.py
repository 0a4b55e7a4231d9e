"""A 16-bit .gguf into one of llama.cpp's smaller types, some matrices in memory at a time; every error is measured."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.export.gguf.types import MIXES, part_of, pick
from dsr1_tune.export.weights.accounting import Group
from dsr1_tune.models.llama_cpp import ggml
from dsr1_tune.moe.anatomy import PARTS, Part
from dsr1_tune.runs.console import Narrator

Counts = defaultdict[Part, list[tuple[int, int, float, float]]]
"""By part of its matrices each one's numbers, what it takes now, |W - W'|² and |W|²."""
_MAX_ERROR = 0.5
_PIECE = 4 << 20  # numbers
_DTYPES = {
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.F32: torch.float32,
}


def quantize(converted: Path, file: Path, kind: str, everything: bool, narrator: Narrator) -> tuple[Group, ...]:
    """Write `file` from the 16-bit one, tensor by tensor; the error of each matrix is measured on the way.

    Raises ModelError for a matrix that does not come back, and OSError, with the file's name, if there is no room.
    """
    reader, counts = GGUFReader(converted), Counts(list)
    num_layers = int(value_of(reader, f"{value_of(reader, Keys.General.ARCHITECTURE)}.block_count"))
    types = {tensor.name: pick(tensor.name, _shape(tensor), kind, everything, num_layers) for tensor in reader.tensors}
    writer = GGUFWriter(file, str(value_of(reader, Keys.General.ARCHITECTURE)))
    _copy_values(reader, writer, MIXES[kind].number)
    for tensor in reader.tensors:
        chosen = types[tensor.name]
        size = ggml.num_bytes(chosen, tensor.n_elements) if chosen else tensor.n_bytes
        held_in = GGMLQuantizationType[chosen] if chosen else tensor.tensor_type
        writer.add_tensor_info(tensor.name, _shape(tensor), np.dtype(np.float32), size, held_in)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        with narrator.counting("quantizing", len(reader.tensors)) as advance:
            for tensor in reader.tensors:
                chosen = types[tensor.name]
                # write, not numpy's tofile: that one does not say that a disk is full.
                for piece in _quantized(converted, tensor, chosen, counts) if chosen else (tensor.data,):
                    out.write(memoryview(piece).cast("B"))
                writer.write_padding(out, out.tell())
                advance(1)
        writer.close()
    except OSError as error:
        error.filename = error.filename or str(file)
        raise
    return groups_of(counts, reader)


def _shape(tensor: Any) -> tuple[int, ...]:
    """As numpy says it; GGUF counts from the last."""
    return tuple(int(size) for size in reversed(tensor.shape))


def value_of(reader: GGUFReader, key: str) -> Any:
    """What a file says of the model under `key`; None if it does not."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _copy_values(reader: GGUFReader, writer: GGUFWriter, file_type: int) -> None:
    """All that the file says of the model, with the new type."""
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == Keys.General.ARCHITECTURE:
            continue
        value = file_type if field.name == Keys.General.FILE_TYPE else field.contents()
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], sub_type=inner)


def _quantized(converted: Path, tensor: Any, kind: str, counts: Counts) -> Iterator[Any]:
    """The blocks of a tensor, piece by piece, several at once; each matrix is counted when it is through."""
    part, (error, size, num_bytes, num) = part_of(tensor.name), (0.0, 0.0, 0, 0)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        waiting = _pieces(converted, tensor)
        while pieces := tuple(islice(waiting, 2 * threads)):
            done = pool.map(lambda piece: _there_and_back(piece[0], kind), pieces)
            for (rows, ends_matrix), (blocks, error_of_piece, size_of_piece) in zip(pieces, done, strict=True):
                error, size = error + error_of_piece, size + size_of_piece
                num_bytes, num = num_bytes + blocks.numel(), num + rows.numel()
                if ends_matrix:
                    if not error <= _MAX_ERROR**2 * size:
                        raise ModelError(
                            f"{tensor.name}: comes back {(error / size) ** 0.5 if size else 1:.0%} off in {kind}",
                            hint="the model may be damaged: compare it, or copy it again",
                        )
                    counts[part].append((num, num_bytes, error, size))
                    error, size, num_bytes, num = 0.0, 0.0, 0, 0
                yield blocks.numpy()


def _pieces(converted: Path, tensor: Any) -> Iterator[tuple[Tensor, bool]]:
    """Every expert by itself, other tensors some rows at a time; and whether their matrix ends with them."""
    shape = _shape(tensor)
    num_rows = tensor.n_elements // shape[-1]
    size = shape[-2] if part_of(tensor.name) == "routed_experts" else num_rows
    step = min(size, max(1, _PIECE // shape[-1]))
    for start in range(0, num_rows, size):
        for begin in range(start, start + size, step):
            end = min(begin + step, start + size)
            yield _rows(converted, tensor, begin, end), end == start + size


def _rows(converted: Path, tensor: Any, begin: int, end: int) -> Tensor:
    """By plain reads: the pages of a memory map would count as memory used."""
    dtype = _DTYPES[tensor.tensor_type]
    columns = _shape(tensor)[-1]
    place = int(tensor.data_offset) + begin * columns * dtype.itemsize
    data = np.fromfile(converted, np.uint8, (end - begin) * columns * dtype.itemsize, offset=place)
    return torch.from_numpy(data).view(dtype).view(end - begin, columns)


def _there_and_back(rows: Tensor, kind: str) -> tuple[Tensor, float, float]:
    """The blocks, |W - W'|² and |W|²."""
    blocks, exact = ggml.quantize(rows, kind), rows.float()
    error = float((ggml.dequantize(blocks, kind) - exact).square().sum())
    return blocks, error, float(exact.square().sum())


def groups_of(counts: Counts, reader: GGUFReader) -> tuple[Group, ...]:
    """A line for each part that has matrices, those left in 16 bits included."""
    num_tensors: Counter[Part] = Counter()
    for tensor in reader.tensors:
        part, shape = part_of(tensor.name), _shape(tensor)
        if part not in ("router", "norms", "other") and len(shape) > 1:
            num_tensors[part] += shape[0] if part == "routed_experts" else 1
    return tuple(_group(part, num_tensors[part], counts[part]) for part in PARTS if part in num_tensors)


def _group(part: Part, num_tensors: int, done: list[tuple[int, int, float, float]]) -> Group:
    num_weights, num_bytes = sum(line[0] for line in done), sum(line[1] for line in done)
    error, size = sum(line[2] for line in done), sum(line[3] for line in done)
    worst = max(((line[2] / line[3]) ** 0.5 for line in done if line[3]), default=0.0)
    return Group(part, num_tensors, len(done), num_weights, num_bytes, (error / size) ** 0.5 if size else 0.0, worst)
