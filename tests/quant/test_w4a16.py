"""4-bit integers in groups: packed and unpacked in any shape, in compressed-tensors' own layout, within half a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsr1_tune.quant.w4a16 import HIGHEST, LOWEST, dequantize, is_w4a16, pack, per_number, quantization_config, unpack

SHAPES = st.tuples(st.integers(1, 5), st.sampled_from([8, 16, 32]), st.integers(1, 4))
"""Rows, group size, groups of a row."""


def integers(rows: int, columns: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(LOWEST, HIGHEST + 1, (rows, columns), generator=draw, dtype=torch.int8)


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 2**31))
def test_w4a16_packing_is_undone_by_unpacking(shape: tuple[int, int, int], seed: int) -> None:
    rows, group, groups = shape
    q_NK = integers(rows, group * groups, seed)
    packed = pack(q_NK)
    assert packed.dtype == torch.int32 and packed.shape == (rows, group * groups // 8)
    assert torch.equal(unpack(packed), q_NK)


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 2**31), st.data())
def test_w4a16_packing_changes_one_nibble_for_one_weight(
    shape: tuple[int, int, int], seed: int, data: st.DataObject
) -> None:
    rows, group, groups = shape
    q_NK = integers(rows, group * groups, seed)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, group * groups - 1))
    other = q_NK.clone()
    other[row, column] = (q_NK[row, column] + 9) % 16 + LOWEST  # any other of the 16
    differs = pack(q_NK) ^ pack(other)
    assert differs[row, column // 8] and differs[row, column // 8] & ~(0xF << 4 * (column % 8)) == 0
    assert int((differs != 0).sum()) == 1


@settings(max_examples=40)
@given(SHAPES, st.integers(0, 2**31))
def test_w4a16_packing_is_compressed_tensors_own(shape: tuple[int, int, int], seed: int) -> None:
    own: Any = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    rows, group, groups = shape
    q_NK = integers(rows, group * groups, seed)
    packed = pack(q_NK)
    assert torch.equal(own.pack_to_int32(q_NK, 4), packed)
    assert torch.equal(own.unpack_from_int32(packed, 4, q_NK.shape), q_NK)


@settings(max_examples=60)
@given(SHAPES, st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_w4a16_dequantized_is_within_half_a_step_and_one_code_off_is_not(
    shape: tuple[int, int, int], seed: int, dtype: torch.dtype
) -> None:
    rows, group, groups = shape
    weight = torch.randn(rows, groups, group, generator=torch.Generator().manual_seed(seed))
    scale_NG = (weight.abs().amax(-1) / 7.5).to(dtype)
    steps = weight / scale_NG.float().unsqueeze(-1)
    q_NK = steps.round().clamp(LOWEST, HIGHEST).to(torch.int8).view(rows, -1)

    def error_in_steps(codes: Tensor) -> Tensor:
        back = dequantize(codes, scale_NG)
        assert back.dtype == dtype and back.shape == codes.shape
        return (back.float().view_as(weight) / scale_NG.float().unsqueeze(-1) - steps).abs()

    bound = 0.5 + 0.05 * (dtype == torch.bfloat16) + 0.02  # 7.5 itself is half a step over the highest code
    assert error_in_steps(q_NK).max() <= bound
    flipped = q_NK.clone()
    flipped[0, 0] += 2 if flipped[0, 0] < 0 else -2
    assert error_in_steps(flipped).max() > bound


def test_w4a16_is_recognised_by_what_its_config_says() -> None:
    config = quantization_config(64, ["lm_head", "a.gate"])
    assert is_w4a16(config) and config["ignore"] == ["a.gate", "lm_head"]
    group = config["config_groups"]["group_0"]
    for change in ({"num_bits": 8}, {"symmetric": False}, {"strategy": "channel"}, {"actorder": "group"}):
        weights = {**group["weights"], **change}
        assert not is_w4a16({**config, "config_groups": {"group_0": {**group, "weights": weights}}})
    assert not is_w4a16({**config, "config_groups": {"group_0": {**group, "input_activations": {"num_bits": 8}}}})
    assert not is_w4a16(None) and not is_w4a16({**config, "config_groups": None})


def test_w4a16_packed_numbers_hold_eight_weights() -> None:
    assert per_number("model.layers.0.mlp.up_proj.weight_packed") == 8
    assert per_number("model.layers.0.mlp.up_proj.weight") == per_number("x.weight_scale") == 1


def test_pack_puts_eight_weights_into_a_word_the_first_lowest() -> None:
    q_NK = torch.tensor([[-8, -7, 0, 1, 2, 3, 6, 7]], dtype=torch.int8)
    word = sum((int(q) + 8) << (4 * place) for place, q in enumerate(q_NK[0]))
    assert int(pack(q_NK)[0, 0]) % 2**32 == word
    assert torch.equal(unpack(pack(q_NK)), q_NK)


def test_unpack_gives_every_integer_back() -> None:
    q_NK = torch.randint(-8, 8, (5, 96), dtype=torch.int8)
    assert pack(q_NK).shape == (5, 12)
    assert torch.equal(unpack(pack(q_NK)), q_NK)


def test_is_w4a16_takes_only_this_format() -> None:
    config = quantization_config(64, ["lm_head"])
    assert is_w4a16(config)
    for change in ({"num_bits": 8}, {"symmetric": False}, {"strategy": "channel"}, {"actorder": "group"}):
        other = quantization_config(64, [])
        other["config_groups"]["group_0"]["weights"] |= change
        assert not is_w4a16(other), change
    assert not is_w4a16({**config, "format": "float-quantized"})
    assert not is_w4a16(None)
