"""DeepSeek's block-FP8: dequantized by the formula, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr1_tune.quant import fp8
from tests.conftest import to_fp8


def test_fp8_dequantized_equals_the_formula() -> None:
    weight = torch.randn(100, 70).to(torch.float8_e4m3fn)
    scale = torch.rand(4, 3)
    got = fp8.dequantize(weight, scale, (32, 32))
    for row, col in [(0, 0), (31, 31), (32, 31), (99, 69), (64, 64)]:
        assert got[row, col] == weight[row, col].float() * scale[row // 32, col // 32]


@pytest.mark.parametrize("block", [32, 48, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_blocks_come_back(dtype: torch.dtype, block: int) -> None:
    weight = (torch.randn(100, 70, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    weight[:block, :block] = 0  # a block of zeros
    stored, scale = fp8.to_blocks(weight, (block, block))
    want, want_scale = to_fp8(weight, block)
    has_scale = want_scale > 0
    assert scale.shape == want_scale.shape and torch.equal(scale[has_scale], want_scale[has_scale])
    back = fp8.dequantize(stored, scale, (block, block))
    exact = weight.float()
    assert torch.equal(back[:block, :block], exact[:block, :block])
    # E4M3 has 4 significant bits, and its smallest step is 2^-9 of a block's scale
    assert ((back - exact).abs() <= exact.abs() / 16 + scale.max() * 2**-10).all()
    different = stored.float() != want.float().nan_to_num()
    assert different.float().mean() < 0.01  # the quotient's last bit
    again = fp8.to_blocks(back, (block, block))
    assert torch.equal(fp8.dequantize(*again, (block, block)), back)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31), st.data())
def test_fp8_error_is_within_its_precision_and_a_flipped_bit_shows(
    rows: int, cols: int, high: int, wide: int, seed: int, data: st.DataObject
) -> None:
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    stored, scale = fp8.to_blocks(weight, (high, wide))
    assert scale.shape == (-(-rows // high), -(-cols // wide))
    spread = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :cols]
    bound = weight.abs() / 16 + spread * 2**-9  # 4 significant bits, or half of the smallest step

    def error(codes: torch.Tensor) -> torch.Tensor:
        return (fp8.dequantize(codes, scale, (high, wide)) - weight).abs()

    assert (error(stored) <= bound * 1.01).all()
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    bits = stored.clone().view(torch.uint8)
    bits[row, col] ^= 0x20  # an exponent's bit: 16 times as large, or as small
    is_worse = ~(error(bits.view(torch.float8_e4m3fn)) <= bound * 1.01)  # it may be no number
    assert bool(is_worse[row, col]) or abs(float(weight[row, col])) < 16 * float(spread[row, col])
    is_worse[row, col] = False
    assert not is_worse.any()


def on_the_grid(rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers that float8 holds, and their scales."""
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(2)) * 0.02
    stored, scale = fp8.to_blocks(weight)
    return fp8.dequantize(stored, scale, (128, 128)), scale


def kept(update: torch.Tensor, base: torch.Tensor, **how: object) -> float:
    stored, scale = fp8.to_blocks(base + update, **how)  # type: ignore[arg-type]
    return float(((fp8.dequantize(stored, scale, (128, 128)) - base) * update).sum() / update.square().sum())


@pytest.mark.parametrize("size", [1e-3, 5e-3, 2e-2])
def test_fp8_by_chance_keeps_the_update_that_rounding_to_the_nearest_loses(size: float) -> None:
    base, scale = on_the_grid(512, 512)
    update = torch.randn(512, 512, generator=torch.Generator().manual_seed(1)) * 0.02 * size
    assert kept(update, base) < 0.7
    assert kept(update, base, seed=7) == pytest.approx(1, abs=0.08)
    assert kept(update, base, seed=7, scales=scale) == pytest.approx(1, abs=0.08)
    in_16_bits = (base + update).bfloat16().float()
    assert kept(in_16_bits - base, base, seed=7) == pytest.approx(1, abs=0.08)


def test_fp8_by_chance_is_the_same_every_time_and_leaves_what_float8_holds() -> None:
    base, scale = on_the_grid(300, 200)
    moved = base + 1e-4
    one, other, third = (fp8.to_blocks(moved, seed=seed)[0].view(torch.uint8) for seed in (5, 5, 6))
    assert torch.equal(one, other) and not torch.equal(one, third)
    for scales in (None, scale):
        again, same = fp8.to_blocks(base, seed=5, scales=scales)
        assert torch.equal(fp8.dequantize(again, same, (128, 128)), base)


def test_fp8_with_a_seed_rounds_weights_that_never_were_in_float8_to_the_nearest() -> None:
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    for seeded, plain in zip(fp8.to_blocks(weight, seed=0), fp8.to_blocks(weight), strict=True):
        assert torch.equal(seeded.float(), plain.float())


def test_fp8_takes_a_new_scale_where_the_earlier_one_is_too_small() -> None:
    base, scale = on_the_grid(128, 256)
    base[0, 0] = 2 * base.abs().max()
    _, after = fp8.to_blocks(base, seed=0, scales=scale)
    assert after[0, 0] > 1.9 * scale[0, 0] and after[0, 1] == scale[0, 1]
