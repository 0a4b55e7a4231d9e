"""Matrices in int8 by rows: what bitsandbytes makes of them, and products with them in modules."""

from __future__ import annotations

import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsr1_tune.quant import int8
from dsr1_tune.quant.int8 import Int8
from dsr1_tune.quant.nf4 import Int8Linear, placeholder, reserve_as, stored_weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_comes_back_as_bitsandbytes_dequantizes_it(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 20, 48)
    parts = int8.quantize(weight)
    held = Int8(parts["packed"], parts["scale"], dtype)
    for expert in range(3):
        want = bnb.int8_vectorwise_dequant(parts["packed"][expert], parts["scale"][expert])
        assert torch.equal(held[expert], want.to(dtype))
        assert torch.equal(parts["scale"][expert], weight[expert].abs().amax(1))
        # half a step of each row's scale
        assert ((want - weight[expert]).abs() <= parts["scale"][expert][:, None] / 254 * 1.001).all()
        assert float(parts["error"][expert]) == pytest.approx(
            float((want - weight[expert]).norm() / weight[expert].norm()), rel=1e-4
        )
    assert torch.equal(held.transpose(1, 2).matrices([2, 0]), held.matrices([2, 0]).transpose(1, 2))
    assert held.transpose(1, 2).shape == (3, 48, 20)


def test_int8_of_float16_is_what_bitsandbytes_own_quantizer_gives() -> None:
    weight = torch.randn(32, 64).half()
    packed, scale, _ = bnb.int8_vectorwise_quant(weight)
    ours = int8.quantize(weight.unsqueeze(0))
    assert torch.equal(ours["scale"][0], scale)
    assert (ours["packed"][0] - packed).abs().max() <= 1  # its quotient is rounded once more, to 16 bits
    assert (ours["packed"][0] != packed).float().mean() < 0.01


def test_int8_rows_of_zeros_and_huge_numbers_stay_what_they_are() -> None:
    weight = torch.randn(1, 4, 16)
    weight[0, 1] = 0
    weight[0, 2] = 1e30
    weight[0, 3] = 0
    weight[0, 3, 0] = 1e-38
    parts = int8.quantize(weight)
    back = Int8(parts["packed"], parts["scale"], torch.float32)[0]
    assert torch.equal(back[1], weight[0, 1]) and torch.isfinite(back).all()
    assert torch.allclose(back[2], weight[0, 2])
    assert float(back[3, 0]) == pytest.approx(1e-38, rel=0.2)


def test_int8_linear_computes_with_it_and_its_scales_survive_a_cast() -> None:
    linear = nn.Linear(48, 20)
    parts = int8.quantize(linear.weight.detach().unsqueeze(0))
    want = bnb.int8_vectorwise_dequant(parts["packed"][0], parts["scale"][0])
    reserve_as(linear, "weight", int8.sizes(1, 20, 48))
    for part, tensor in parts.items():
        linear.register_buffer(f"weight_{part}", tensor)
    linear.weight = placeholder((20, 48), torch.float32, torch.device("cpu"))
    linear.__class__ = Int8Linear
    x = torch.randn(5, 48, requires_grad=True)
    y = linear(x)
    assert torch.allclose(y, x @ want.T + linear.bias, atol=1e-5)
    y.sum().backward()
    assert torch.allclose(x.grad, want.sum(0).expand(5, -1), atol=1e-5)
    linear.to(torch.bfloat16)
    held = stored_weight(linear, "weight")
    assert isinstance(held, Int8) and held.scale.dtype == torch.float32 and held.dtype == torch.bfloat16
    assert torch.equal(held[0], want.bfloat16())
    assert held.num_bytes == 20 * 48 + 20 * 4


@settings(max_examples=40)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_int8_error_is_within_half_a_step_and_one_step_off_is_not(
    num: int, rows: int, cols: int, seed: int, size: float
) -> None:
    weight = torch.randn(num, rows, cols, generator=torch.Generator().manual_seed(seed)) * size
    parts = int8.quantize(weight)
    step = parts["scale"].unsqueeze(2) / int8.LARGEST

    def error_in_steps(packed: torch.Tensor) -> torch.Tensor:
        return ((Int8(packed, parts["scale"], torch.float32).matrices(slice(None)) - weight) / step).abs()

    assert parts["packed"].abs().amax(2).eq(int8.LARGEST).all()  # each row's largest number
    assert error_in_steps(parts["packed"]).max() <= 0.5 + 1e-3
    off = parts["packed"].clone()
    off[0, 0, 0] -= off[0, 0, 0].sign() or 1
    assert error_in_steps(off).max() >= 0.5 - 1e-3
    assert error_in_steps(off)[0, 0, 0] > error_in_steps(parts["packed"])[0, 0, 0]
