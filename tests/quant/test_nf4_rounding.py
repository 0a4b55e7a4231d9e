"""Rounding to NF4 on a CPU."""

from __future__ import annotations

import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr1_tune.quant.nf4_rounding import round_to_codes


def test_nf4_rounding_is_bitsandbytes_own_to_the_last_bit() -> None:
    """Over several pieces, in any number format and size, on the boundaries between two codes and beside them."""
    numbers = bnb.get_4bit_type("nf4", device="cpu")
    boundaries = (numbers[1:] + numbers[:-1]) / 2
    near = [boundaries.nextafter(torch.tensor(end)) for end in (2.0, -2.0)]
    edges = torch.cat([boundaries, *near, torch.tensor([1.0, -1.0, 0.0])]).repeat(64)[:3008].view(-1, 64)
    edges[:, 0] = 1
    draw = torch.Generator().manual_seed(0)
    matrices = [edges, edges * 3e-5, torch.zeros(2, 64), torch.full((1, 64), 1e-39), torch.full((1, 64), -1e38)]
    matrices += [torch.randn(5000, 64, generator=draw) * size for size in (1e-6, 0.02, 300.0)]
    matrices += [torch.randn(1000, 64, generator=draw).to(dtype) for dtype in (torch.bfloat16, torch.float16)]
    for matrix in matrices:
        packed, state = bnb.quantize_4bit(matrix, blocksize=64, quant_type="nf4")
        codes, scales = round_to_codes(matrix, 64)
        assert torch.equal(codes, packed.view(-1)) and torch.equal(scales, state.absmax)


@settings(max_examples=40)
@given(st.integers(1, 6), st.sampled_from([32, 64, 128]), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_nf4_rounding_takes_the_nearest_of_the_16_numbers(blocks: int, block: int, seed: int, size: float) -> None:
    matrix = torch.randn(blocks, block, generator=torch.Generator().manual_seed(seed)) * size
    packed, scales = round_to_codes(matrix, block)
    assert torch.equal(scales, matrix.abs().amax(1))
    numbers = bnb.get_4bit_type("nf4", device="cpu")
    codes = torch.stack((packed >> 4, packed & 0xF), -1).view(blocks, block).long()
    unit = matrix / scales.unsqueeze(1)
    distances = (unit.unsqueeze(-1) - numbers).abs()
    chosen = distances.gather(-1, codes.unsqueeze(-1)).squeeze(-1)
    assert (chosen <= distances.amin(-1) + 1e-6).all()
    other = distances.gather(-1, ((codes + 1) % 16).unsqueeze(-1)).squeeze(-1)
    assert (other >= chosen - 1e-6).all() and (other > chosen).any()
