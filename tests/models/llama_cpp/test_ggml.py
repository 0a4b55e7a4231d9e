"""llama.cpp's quantizers: sizes as the gguf package knows them, and numbers that come back within their precision."""

from __future__ import annotations

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as gguf_dequantize

from dsr1_tune.models.llama_cpp import ggml

pytest.importorskip("xllamacpp")
# The largest error of a normal matrix by its norm, with room of a tenth, and never as small as half of it.
ERRORS = {
    "Q8_0": 0.006, "Q6_K": 0.018, "Q5_K": 0.035, "Q4_K": 0.072, "Q3_K": 0.15, "Q5_1": 0.037, "Q5_0": 0.043,
    "IQ4_NL": 0.085,
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(ggml.TYPES))
def test_ggml_blocks_have_the_sizes_of_the_format(kind: str) -> None:
    number, *_ = ggml.TYPES[kind]
    assert GGMLQuantizationType(number).name == kind
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    assert (ggml.block(kind), ggml.num_bytes(kind, 4 * block)) == (block, 4 * size)


@pytest.mark.parametrize("kind", sorted(ggml.TYPES))
def test_ggml_numbers_come_back_as_the_gguf_package_reads_them(kind: str) -> None:
    matrix = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    data = ggml.quantize(matrix, kind)
    assert data.dtype == torch.uint8 and data.shape == (6, ggml.num_bytes(kind, 512))
    back = ggml.dequantize(data, kind)
    assert ERRORS[kind] / 3 < float((back - matrix).norm() / matrix.norm()) < ERRORS[kind] * 1.3
    theirs = gguf_dequantize(data.numpy(), GGMLQuantizationType(ggml.TYPES[kind][0]))
    torch.testing.assert_close(back, torch.from_numpy(theirs), rtol=1e-5, atol=1e-5)
    flipped = data.clone()
    flipped[2, 20] ^= 0xFF
    worse = (ggml.dequantize(flipped, kind) - matrix).norm(dim=1) / matrix.norm(dim=1)
    assert worse[2] > 0 and not torch.equal(ggml.dequantize(flipped, kind)[2], back[2])
