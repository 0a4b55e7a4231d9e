"""Weights in NF4: bitsandbytes' numbers, any matrix alone, products with gradients, and nothing used in silence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bitsandbytes import functional as bnb
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from dsr1_tune.errors import ModelError
from dsr1_tune.quant.nf4 import (
    Nf4,
    Nf4Linear,
    as_buffers,
    check_error,
    fits,
    is_held,
    keep_placeholder_out,
    quantize,
    reserve,
    sizes,
    stored_weight,
)


def as_nf4(weight: torch.Tensor) -> Nf4:
    parts = quantize(weight)
    rows, cols = weight.shape[1:]
    return Nf4(parts["packed"], parts["absmax"], parts["scale"], parts["offset"], rows, cols, weight.dtype)


@pytest.fixture
def weight() -> torch.Tensor:
    """Three experts; 192 × 128 / 64 blocks do not fill their last block of 256 scales."""
    return torch.randn(3, 192, 128, generator=torch.Generator().manual_seed(0)) * 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_matrix_is_what_bitsandbytes_makes_of_it_alone(weight: torch.Tensor, dtype: torch.dtype) -> None:
    weight = weight.to(dtype)
    held = as_nf4(weight)
    for index, matrix in enumerate(weight):
        packed, state = bnb.quantize_4bit(matrix, blocksize=64, compress_statistics=True, quant_type="nf4")
        assert torch.equal(held[index], bnb.dequantize_4bit(packed, state))


def test_nf4_choice_of_matrices_is_the_same_as_one_by_one(weight: torch.Tensor) -> None:
    held = as_nf4(weight)
    one_by_one = torch.stack([held[index] for index in range(3)])
    assert torch.equal(held.matrices(slice(None)), one_by_one)
    assert torch.equal(held.matrices([2, 0]), one_by_one[[2, 0]])
    flipped = held.transpose(1, 2)
    assert flipped.shape == (3, 128, 192) and torch.equal(flipped.matrices([1])[0], one_by_one[1].t())
    assert flipped.transpose(1, 2).shape == held.shape


def test_nf4_takes_four_bits_and_a_little_a_weight() -> None:
    held = as_nf4(torch.randn(2, 768, 576))
    assert 4.12 < 8 * held.num_bytes / (2 * 768 * 576) < 4.13


def test_nf4_error_is_that_of_each_matrix(weight: torch.Tensor) -> None:
    weight[1, 0, 0] = 5.0  # an outlier costs its block all precision
    error, held = quantize(weight)["error"], as_nf4(weight)
    for index, matrix in enumerate(weight):
        assert float(error[index]) == pytest.approx(float((held[index] - matrix).norm() / matrix.norm()), rel=1e-5)
    assert 0.05 < float(error[0]) < 0.12
    assert float(quantize(torch.zeros(1, 64, 64))["error"]) == 0.0
    weight[2, 0, 0] = float("nan")
    assert not float(quantize(weight)["error"][2]) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "cols"), [(128, 96), (96, 32), (64, 100), (192, 33), (64, 1), (2, 32), (1, 64)])
def test_nf4_blocks_that_cross_rows_come_back_as_definition_says(rows: int, cols: int, dtype: torch.dtype) -> None:
    """The same numbers in rows of 64 are the same blocks, and so the same codes and the same matrix."""
    weight = torch.randn(2, rows, cols, generator=torch.Generator().manual_seed(0)).to(dtype)
    held, in_rows_of_64 = as_nf4(weight), as_nf4(weight.view(2, -1, 64))
    assert torch.equal(held.packed, in_rows_of_64.packed)
    assert torch.equal(held.matrices(slice(None)), in_rows_of_64.matrices(slice(None)).view(weight.shape))
    numbers = bnb.get_4bit_type("nf4", device="cpu")
    blocks = weight.float().view(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = numbers[((blocks / scale).unsqueeze(-1) - numbers).abs().argmin(-1)] * scale
    assert float((held.matrices(slice(None)).float() - nearest.view(weight.shape)).abs().max() / scale.max()) < 0.03


def test_nf4_products_over_blocks_that_cross_rows_have_their_gradients() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 128)
    weight = linear.weight.detach().clone()
    held, x = hold(linear), torch.randn(5, 96, requires_grad=True)
    y = held(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert (
        float((y.detach() - functional.linear(x.detach(), weight, held.bias.detach())).norm() / y.detach().norm())
        < 0.13
    )
    assert float((dx - torch.ones_like(y) @ weight).norm() / dx.norm()) < 0.13


def outliers(num: int, size: float) -> torch.Tensor:
    """A matrix of many small numbers and a few large ones, whose blocks spoil the scales of their neighbours."""
    matrix = torch.randn(num, 96, generator=torch.Generator().manual_seed(0)) * 0.02
    matrix.view(-1)[:: num * 24] = size
    return matrix


@pytest.mark.parametrize(
    "matrix",
    [
        torch.randn(4096, 96, generator=torch.Generator().manual_seed(0)),
        torch.rand(64, 96, generator=torch.Generator().manual_seed(0)) ** 9,
        torch.randint(-1, 2, (128, 96), generator=torch.Generator().manual_seed(0)).float(),
        torch.zeros(64, 64),
        outliers(128, 5.0),
        outliers(8192, 300.0),
        1e-30 * torch.randn(64, 96, generator=torch.Generator().manual_seed(0)),
    ],
)
def test_nf4_alarm_is_silent_for_any_numbers_and_heard_where_blocks_get_the_scales_of_others(
    matrix: torch.Tensor,
) -> None:
    held = as_nf4(matrix[None])
    check_error(matrix, held[0], "w")
    if matrix.any() and matrix.abs().max() > 1e-3 and set(matrix.unique().tolist()) != {-1, 0, 1}:
        order = torch.arange(held.absmax.shape[1]).roll(1)
        with pytest.raises(ModelError, match=r"^w \(\d+ × 96\): comes back"):
            check_error(matrix, replace(held, absmax=held.absmax[:, order])[0], "w")


def test_nf4_sizes_are_those_of_what_is_made(weight: torch.Tensor) -> None:
    assert {name: (tuple(t.shape), t.dtype) for name, t in quantize(weight).items()} == sizes(3, 192, 128)
    assert fits(192, 128) and fits(3, 64) and not fits(3, 63)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 192)


def hold(linear: nn.Linear) -> Nf4Linear:
    """The same layer with its weight in NF4, as the loader makes it."""
    weight = linear.weight.detach().clone()
    reserve(linear, "weight")
    assert all(buffer.device.type == "meta" for buffer in linear.buffers())
    for name, tensor in as_buffers("weight", weight).items():
        setattr(linear, name, tensor)
    linear.__class__ = Nf4Linear
    keep_placeholder_out(linear, "weight")
    return linear  # type: ignore[return-value]


def test_nf4_linear_computes_with_its_dequantized_weight(linear: nn.Linear) -> None:
    held = hold(linear)
    weight = stored_weight(held, "weight")
    assert isinstance(weight, Nf4) and is_held(held, "weight")
    x = torch.randn(2, 5, 128, requires_grad=True)
    y = held(x)
    assert torch.equal(y, functional.linear(x, weight[0], held.bias))
    dy = torch.randn_like(y)
    dx, dbias = torch.autograd.grad(y, (x, held.bias), dy)
    torch.testing.assert_close(dx, dy @ weight[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dbias, dy.sum((0, 1)), rtol=1e-6, atol=1e-6)


def test_nf4_linear_keeps_nothing_of_the_weights_size_for_backward(linear: nn.Linear) -> None:
    held, kept = hold(linear), list[int]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        held(torch.randn(2, 128, requires_grad=True)).sum().backward()
    assert sum(kept) < 128 * 192 / 4


def test_nf4_placeholder_has_the_weights_shape_and_computes_nan(linear: nn.Linear) -> None:
    held = hold(linear)
    assert held.weight.shape == (192, 128) and held.weight.dtype == torch.float32
    assert held.weight.untyped_storage().nbytes() == 4 and not held.weight.requires_grad
    assert functional.linear(torch.ones(1, 128), held.weight).isnan().all()


def test_nf4_placeholder_is_not_saved(linear: nn.Linear) -> None:
    assert set(hold(linear).state_dict()) == {"bias", *(f"weight_{name}" for name in sizes(1, 192, 128))}


def test_nf4_in_parts_is_each_part_by_itself() -> None:
    """Gate and up are quantized apart, each with scales and an offset of its own, and computed with as one matrix."""
    apart = torch.randn(6, 40, 48)  # 30 blocks of 64: less than one block of scales
    parts = quantize(apart)
    rows = [parts[name] for name in ("packed", "absmax", "scale", "offset")]
    together = Nf4(*rows, rows=80, cols=48, dtype=torch.float32, num_parts=2)
    each = Nf4(*rows, rows=40, cols=48, dtype=torch.float32)
    assert together.shape == (3, 80, 48) and together.transpose(1, 2).shape == (3, 48, 80)
    assert torch.equal(together.matrices([2, 0]), each.matrices([4, 5, 0, 1]).view(2, 80, 48))
    assert torch.equal(together[1], each.matrices(slice(2, 4)).view(80, 48))
    assert as_buffers("weight", apart)["weight_packed"].shape == (6, 960)


@settings(max_examples=25)
@given(
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([64, 128, 192]), st.integers(0, 2**31), st.floats(1e-3, 1e2)
)
def test_nf4_error_is_within_half_a_gap_of_its_codes_and_a_flipped_code_shows(
    num: int, rows: int, cols: int, seed: int, size: float
) -> None:
    weight = torch.randn(num, rows, cols, generator=torch.Generator().manual_seed(seed)) * size
    numbers = bnb.get_4bit_type("nf4", device="cpu")
    half_a_gap = float(numbers.diff().max()) / 2
    largest = weight.view(num, -1, 64).abs().amax(-1, keepdim=True)

    def error_in_scales(held: Nf4) -> torch.Tensor:
        return ((held.matrices(slice(None)) - weight).view(num, -1, 64) / largest).abs()

    held = as_nf4(weight)
    bound = half_a_gap + 0.06  # scales are rounded to 8 bits, by as much of the largest among them
    of_all = largest.amax(1, keepdim=True) / largest
    assert (error_in_scales(held) <= half_a_gap + 0.06 * of_all).all()
    flipped = replace(held, packed=held.packed ^ 0x80)  # the first weight of each pair: half of all codes away
    assert float(error_in_scales(flipped).max()) > bound + 0.3
