"""Tiles of routed rows, for narrow products on GPUs that have no kernel of grouped ones: all experts in one batch.

Letters: E experts, S routed rows, N tiles, P places in them, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Places for rows in order of their experts, `tile` one after the other for one expert: N tiles.

    As many as any routing may need, so that no one has to wait for this one's number; in those that are left over, and
    behind each expert's last row, some other row stands, which does not count.
    """

    row_P: Tensor
    """Which row stands in each of the N · tile places."""
    is_real_P1: Tensor
    place_S: Tensor
    """Where each row stands."""
    expert_N: Tensor
    num_experts: int
    tile: int

    @classmethod
    def of(cls, expert_S: Tensor, offsets_E: Tensor) -> Tiles:
        """For rows of these experts, in their order, which end at these offsets."""
        num_rows, num_experts = len(expert_S), len(offsets_E)
        tile = tile_rows(num_rows / num_experts)
        num_tiles = (num_rows + min(num_rows, num_experts) * (tile - 1)) // tile
        ends_E = offsets_E.to(torch.int64)
        counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        tiles_E = (counts_E + tile - 1) // tile
        tile_ends_E = tiles_E.cumsum(0)
        place_of_0_E = (tile_ends_E - tiles_E) * tile
        number_N = torch.arange(num_tiles, device=expert_S.device)
        expert_N = torch.searchsorted(tile_ends_E, number_N, right=True).clamp_(max=num_experts - 1)
        # How far a place, and a row, are from its expert's first.
        place_NT = torch.arange(num_tiles * tile, device=expert_S.device).view(-1, tile)
        within_NT = place_NT - place_of_0_E.index_select(0, expert_N).unsqueeze(1)
        is_real_NT = within_NT < counts_E.index_select(0, expert_N).unsqueeze(1)
        row_NT = within_NT + (ends_E - counts_E).index_select(0, expert_N).unsqueeze(1)
        row_P = row_NT.clamp_(max=num_rows - 1).view(-1)
        shift_S = (place_of_0_E - ends_E + counts_E).index_select(0, expert_S)
        place_S = torch.arange(num_rows, device=expert_S.device) + shift_S
        return cls(row_P, is_real_NT.view(-1, 1), place_S, expert_N, num_experts, tile)

    def add_update(self, y: Tensor, x: Tensor, a: Tensor, bt: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """`y + s h Bᵀ`, in the place of y, and `h = x Aᵀ` by places.

        x (S, in), y (S, out), a (E, R, in), bt (E, R, out) → (S, out), (P, R).
        """
        h = torch.bmm(self._tiled(x), a.index_select(0, self.expert_N).transpose(1, 2))
        update = torch.bmm(h, bt.index_select(0, self.expert_N)).flatten(0, 1)
        return y.add_(update.index_select(0, self.place_S), alpha=scale), h.flatten(0, 1)

    def add_gradients(
        self,
        dx: Tensor,
        dy: Tensor,
        x: Tensor,
        h: Tensor,
        lora: tuple[Tensor, Tensor],
        scale: float,
        weight_S1: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Add the update's share to dx; gradients of a (E, R, in) and bt (E, R, out), yet without the scale.

        With `weight_S1`, those count each row by its gate weight, which dy is without.
        """
        a, bt = (factor.index_select(0, self.expert_N) for factor in lora)
        dy_tiles = self._tiled(dy)
        dh = torch.bmm(dy_tiles, bt.transpose(1, 2))
        dx.add_(torch.bmm(dh, a).flatten(0, 1).index_select(0, self.place_S), alpha=scale)
        counted = self.is_real_P1.to(h.dtype)
        if weight_S1 is not None:
            counted = counted * weight_S1.index_select(0, self.row_P)
        h, dh = h * counted, dh.flatten(0, 1) * counted
        da = torch.bmm(self._by_tile(dh).transpose(1, 2), self._tiled(x))
        dbt = torch.bmm(self._by_tile(h).transpose(1, 2), dy_tiles)
        return self._sum(da), self._sum(dbt)

    def _tiled(self, rows: Tensor) -> Tensor:
        return self._by_tile(rows.index_select(0, self.row_P))

    def _by_tile(self, places: Tensor) -> Tensor:
        return places.view(-1, self.tile, places.shape[-1])

    def _sum(self, per_tile: Tensor) -> Tensor:
        """(N, R, width) → (E, R, width): by a product, as sums of scattered numbers differ from run to run on a GPU."""
        expert_E1 = torch.arange(self.num_experts, device=per_tile.device).unsqueeze(1)
        is_of_EN = (self.expert_N == expert_E1).to(per_tile.dtype)
        return (is_of_EN @ per_tile.flatten(1)).view(-1, *per_tile.shape[1:])


def tile_rows(mean_rows: float) -> int:
    """Rows of a tile: most experts fit into one, in steps that suit vector units; measured, not derived."""
    return min(max(8 * round(1.5 * mean_rows / 8), 8), 64)
