"""llama.cpp's own quantizers, called in the library that xllamacpp brings: rows of numbers to blocks and back.

These functions are not documented by xllamacpp, so a version is pinned, and each type is tried before it is used.
"""

from __future__ import annotations

import ctypes as c
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models.llama_cpp import client

# By name: ggml's number, weights in a block, bytes of a block, what the function that reads it back is called.
TYPES: dict[str, tuple[int, int, int, str]] = {
    "Q8_0": (8, 32, 34, "dequantize_row_q8_0"),
    "Q6_K": (14, 256, 210, "dequantize_row_q6_K"),
    "Q5_K": (13, 256, 176, "dequantize_row_q5_K"),
    "Q4_K": (12, 256, 144, "dequantize_row_q4_K"),
    "Q3_K": (11, 256, 110, "dequantize_row_q3_K"),
    "Q5_1": (7, 32, 24, "dequantize_row_q5_1"),
    "Q5_0": (6, 32, 22, "dequantize_row_q5_0"),
    "IQ4_NL": (20, 32, 18, "dequantize_row_iq4_nl"),
}
_PINNED = f"install the version of xllamacpp that this release is tested with: {client.INSTALL}"


def block(kind: str) -> int:
    """How many neighbouring weights of a row share a scale; rows must be divisible by it."""
    return TYPES[kind][1]


def num_bytes(kind: str, num_weights: int) -> int:
    """What that many weights take."""
    return num_weights // TYPES[kind][1] * TYPES[kind][2]


def quantize(matrix: Tensor, kind: str) -> Tensor:
    """The rows of a matrix (rows, columns) as bytes (rows, bytes a row). Raises ModelError without llama.cpp."""
    _try(kind)
    return _quantize(matrix, kind)


def dequantize(data: Tensor, kind: str) -> Tensor:
    """Those bytes as numbers (rows, columns) in float32."""
    _, size, num, function = TYPES[kind]
    back = torch.empty(data.shape[0], data.shape[1] // num * size)
    getattr(_library(), function)(c.c_void_p(data.data_ptr()), c.c_void_p(back.data_ptr()), c.c_int64(back.numel()))
    return back


def _quantize(matrix: Tensor, kind: str) -> Tensor:
    number, *_ = TYPES[kind]
    exact = matrix.float().contiguous()
    rows, columns = exact.shape
    out = torch.empty(rows, num_bytes(kind, columns), dtype=torch.uint8)
    done = _library().ggml_quantize_chunk(number, exact.data_ptr(), out.data_ptr(), 0, rows, columns, None)
    if done != out.numel():
        raise ModelError(f"llama.cpp wrote {done:,} bytes of {kind}, {out.numel():,} were due", hint=_PINNED)
    return out


@cache
def _try(kind: str) -> None:
    """A wave, there and back: other functions under these names would show."""
    wave = torch.linspace(0, 60, 8 * 256).sin().view(8, 256)
    error = float((dequantize(_quantize(wave, kind), kind) - wave).norm() / wave.norm())
    if not error < 0.2:
        raise ModelError(f"llama.cpp's {kind} comes back {error:.0%} off", hint=_PINNED)


@cache
def _library() -> Any:
    try:
        library = c.CDLL(str(client.library()))
        library.ggml_quantize_chunk.argtypes = (c.c_int, c.c_void_p, c.c_void_p, *[c.c_int64] * 3, c.c_void_p)
        library.ggml_quantize_chunk.restype = c.c_size_t
        for number, *_, function in TYPES.values():
            getattr(library, function).restype = None
            library.ggml_quantize_init(number)
    except (OSError, AttributeError) as error:
        raise ModelError(f"xllamacpp's llama.cpp cannot be used: {error}", hint=_PINNED) from error
    return library
