"""Every routed row stands in a tile of its expert once, whatever the routing."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr1_tune.moe.expert_tiles import Tiles


@settings(max_examples=100)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=8))
def test_every_row_stands_in_a_tile_of_its_expert_once(counts: list[int]) -> None:
    expert_S = torch.repeat_interleave(torch.tensor(counts))
    tiles = Tiles.of(expert_S, torch.tensor(counts).cumsum(0).to(torch.int32))
    real_P = tiles.is_real_P1.squeeze(1)
    assert len(tiles.row_P) == len(real_P) == len(tiles.expert_N) * tiles.tile
    assert torch.equal(tiles.row_P[real_P], torch.arange(len(expert_S)))
    assert torch.equal(real_P.nonzero().squeeze(1), tiles.place_S)
    assert torch.equal(tiles.expert_N.repeat_interleave(tiles.tile)[real_P], expert_S)


def test_there_are_few_more_tiles_than_rows_need() -> None:
    expert_S = torch.arange(8).repeat_interleave(64)
    tiles = Tiles.of(expert_S, torch.arange(1, 9, dtype=torch.int32) * 64)
    assert tiles.tile == 64 and len(tiles.expert_N) <= 16
