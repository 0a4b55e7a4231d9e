"""Products over routed rows, expert by expert, are those of the plain formula for any routing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsr1_tune.moe import expert_rows
from dsr1_tune.moe.expert_rows import RoutedRows, UnpackedLora

# T tokens, E experts, K chosen, R rank, in and out


def routing(tokens: int, experts: int, chosen: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(experts, generator=draw)[:chosen] for _ in range(tokens)])


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3)).filter(lambda sizes: sizes[2] <= sizes[1])


@settings(max_examples=50)
@given(SIZES, st.integers(0, 2**31))
def test_rows_stand_by_expert_and_find_back_to_their_tokens(sizes: tuple[int, int, int], seed: int) -> None:
    tokens, experts, chosen = sizes
    index_TK = routing(tokens, experts, chosen, seed)
    rows = RoutedRows.sort(index_TK, experts)
    # What each row is of: its token and its expert, as the router chose them.
    assert torch.equal(rows.as_chosen(rows.token_P), torch.arange(tokens).repeat_interleave(chosen))
    assert torch.equal(rows.as_chosen(rows.expert_P), index_TK.flatten())
    assert rows.offsets_E.tolist() == torch.bincount(index_TK.flatten(), minlength=experts).cumsum(0).tolist()
    for expert, (start, count) in enumerate(rows.spans):
        assert start % rows.tile == 0 and count == int((index_TK == expert).sum())


@pytest.mark.parametrize("way", ["on a CPU", "grouped", "in tiles"])
@settings(max_examples=30)
@given(SIZES, st.integers(1, 5), st.integers(0, 2**31))
def test_rows_linear_and_its_gradients_are_the_formulas(
    way: str, sizes: tuple[int, int, int], rank: int, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_rows, "_is_grouped", lambda device: way != "on a CPU")
        patch.setattr(expert_rows, "is_fused", lambda device, dtype: way != "in tiles")
        # Grouped products take float32 at most, and rows of whole 16 bytes.
        check_formulas(sizes, rank, seed, torch.float64 if way == "on a CPU" else torch.float32)


def check_formulas(sizes: tuple[int, int, int], rank: int, seed: int, dtype: torch.dtype) -> None:
    (tokens, experts, chosen), (width, out) = sizes, (8, 12)
    close = partial(torch.testing.assert_close, **({} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}))
    index_TK = routing(tokens, experts, chosen, seed)
    draw = torch.Generator().manual_seed(seed)
    x_TI, weight_TK, w_EOI, a, b = (
        torch.randn(*shape, generator=draw, dtype=dtype).requires_grad_()
        for shape in ((tokens, width), (tokens, chosen), (experts, out, width), (experts * rank, width),
                      (out, rank * experts))
    )  # fmt: skip
    rows = RoutedRows.sort(index_TK, experts)
    with torch.no_grad():
        lora = UnpackedLora.of(a, b, 0.5, w_EOI, rows)
        x_P = x_TI.index_select(0, rows.token_P)
        y_P, h_P = rows.linear(x_P, w_EOI, lora)
        y_TO = rows.combine(y_P, weight_TK)
    a_ERI, b_EOR = a.view(experts, rank, width), b.view(out, rank, experts).permute(2, 0, 1)
    whole_EOI = w_EOI + 0.5 * b_EOR @ a_ERI
    want_TO = torch.einsum("tk,tkoi,ti->to", weight_TK, whole_EOI[index_TK], x_TI)
    close(y_TO, want_TO.detach())

    dy_TO = torch.randn(tokens, out, generator=draw, dtype=dtype)
    dx_TI, da, db = torch.autograd.grad(want_TO, (x_TI, a, b), dy_TO)
    with torch.no_grad():
        dy_P, weight_P1 = dy_TO.index_select(0, rows.token_P), rows.pad_weights(weight_TK)
        got_P, got_a, got_b = rows.linear_backward(dy_P, x_P, h_P, w_EOI, lora, weight_P1)
        close(rows.sum_back(got_P * weight_P1), dx_TI)
    close(got_a, da)
    close(got_b, db)


def test_rows_without_lora_are_the_plain_product() -> None:
    index_TK = routing(7, 3, 2, 0)
    rows, weight = RoutedRows.sort(index_TK, 3), torch.randn(3, 4, 5)
    y_P, h_P = rows.linear(torch.randn(7, 5).index_select(0, rows.token_P), weight, None)
    assert h_P is None and y_P.shape == (len(rows.token_P), 4)
    assert UnpackedLora.of(None, None, 1.0, weight, rows) is None


def test_imagined_rows_are_as_many_as_real_ones_of_an_even_load() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    even_TK = torch.arange(64).view(32, 2) % 4
    real = RoutedRows.sort(even_TK, 4)
    with FakeTensorMode():
        imagined = RoutedRows.sort(torch.zeros(32, 2, dtype=torch.long), 4)
    assert imagined.token_P.shape == real.token_P.shape and imagined.tile == real.tile
    assert sum(count for _, count in imagined.spans) == sum(count for _, count in real.spans) == 64


@pytest.mark.parametrize(("rank", "itemsize", "wide"), [(1, 2, 8), (8, 2, 8), (9, 2, 16), (3, 4, 4)])
def test_rows_ranks_are_padded_to_16_bytes_on_a_gpu_alone(rank: int, itemsize: int, wide: int) -> None:
    rows = RoutedRows.sort(torch.tensor([[0]]), 1)
    assert rows.pad_rank(rank, itemsize) == rank
    from dataclasses import replace

    assert replace(rows, spans=()).pad_rank(rank, itemsize) == wide


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "answer"),
    [
        ("cpu", (0, 0), torch.float32, True),
        ("cuda", (9, 0), torch.bfloat16, True),
        ("cuda", (10, 0), torch.bfloat16, True),
        ("cuda", (9, 0), torch.float32, False),
        ("cuda", (8, 0), torch.bfloat16, False),
        ("cuda", (8, 9), torch.bfloat16, False),
        ("cuda", (12, 0), torch.bfloat16, False),
    ],
)
def test_grouped_products_are_one_kernel_on_some_gpus_alone(
    monkeypatch: pytest.MonkeyPatch, kind: str, capability: tuple[int, int], dtype: torch.dtype, answer: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert expert_rows.is_fused(torch.device(kind), dtype) is answer
