"""Routed rows in order of their experts, and products over them: what a layer of experts computes, expert by expert.

Letters: T tokens, E experts, K chosen per token, S = T·K routed rows, P those rows with padding, N tiles, R rank.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from dsr1_tune.moe.expert_tiles import Tiles, tile_rows
from dsr1_tune.quant.nf4 import QuantizedWeight

AnyWeight = TypeVar("AnyWeight", Tensor, QuantizedWeight, Tensor | QuantizedWeight)

PORTION_BYTES = 2**30
"""On a GPU, so much of a layer's 4-bit experts is dequantized at a time."""
_FUSED_ON = (9, 10)
"""Compute capabilities of the GPUs, Hopper's and Blackwell's, for which torch has a kernel of grouped products."""

IMAGINED_ON_GPU: ContextVar[bool] = ContextVar("imagined on a GPU", default=False)
"""Whether rows that are only imagined, take the way of a GPU: their tensors say that they are the CPU's."""


@dataclass(frozen=True)
class UnpackedLora:
    """LoRA A and B per expert, in the weight's dtype: a (E, R, in), bt (E, R, out), which may be a strided view.

    `rank` is the adapter's own; R is larger where the rows' grouped products need it, and the rows added are 0.
    """

    a: Tensor
    bt: Tensor
    scale: float
    rank: int

    @classmethod
    def of(
        cls,
        packed_a: Tensor | None,
        packed_b: Tensor | None,
        scale: float,
        weight: Tensor | QuantizedWeight,
        rows: RoutedRows,
    ) -> UnpackedLora | None:
        """From PEFT's packing; None where there is no LoRA on the weight."""
        if packed_a is None or packed_b is None:
            return None
        num_experts = weight.shape[0]
        a = packed_a.to(weight.dtype).view(num_experts, -1, packed_a.shape[-1])
        # A plain 2-D transpose: far cheaper than gathering (E, out, R), and its rows are contiguous for BLAS.
        bt = packed_b.to(weight.dtype).t().contiguous().view(-1, num_experts, packed_b.shape[0])
        rank = a.shape[1]
        missing = rows.pad_rank(rank, weight.element_size()) - rank
        if missing:
            a = functional.pad(a, (0, 0, 0, missing))
            bt = functional.pad(bt, (0, 0, 0, 0, 0, missing))
        return cls(a, bt.transpose(0, 1), scale, rank)

    def pick(self, expert_N: Tensor) -> UnpackedLora:
        """A and B of each tile's expert: (N, R, in) and (N, R, out)."""
        return replace(self, a=self.a.index_select(0, expert_N), bt=self.bt.index_select(0, expert_N))


@dataclass(frozen=True)
class RoutedRows:
    """The S routed rows in order of their experts, and the grouped products over them.

    On a CPU thousands of narrow products, one an expert, cost more in overhead than in arithmetic. So each expert's
    rows start on a tile of `tile` rows there (P ≥ S rows in all, the ones between are padding with gate weight 0), the
    wide products of the frozen weights run expert by expert over the real rows, and the narrow ones of the update run
    as one batched product over the N tiles. On a GPU the tile is 1 row and all of them are grouped products; where
    torch has no kernel for those, the narrow ones are batched over tiles that the rows are copied to.

    Nothing on a GPU's way waits for the GPU: how many rows an expert has is never asked for.
    """

    token_P: Tensor
    expert_P: Tensor
    position_S: Tensor
    offsets_E: Tensor
    num_chosen: int
    tile: int
    expert_N: Tensor
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def sort(cls, index_TK: Tensor, num_experts: int, tile: int | None = None) -> RoutedRows:
        """Put the rows of the router's choice (T, K) in order of their experts; with a `tile` of 1 none are padding."""
        if isinstance(index_TK, FakeTensor):
            return cls._even(index_TK, num_experts)
        expert_S, order_S = index_TK.reshape(-1).sort(stable=True)
        counts_E = torch.zeros(num_experts, dtype=torch.int64, device=order_S.device)
        counts_E.scatter_add_(0, expert_S, torch.ones_like(expert_S))
        offsets_E = counts_E.cumsum(0)
        token_S = order_S // index_TK.shape[-1]
        arange_S = torch.arange(order_S.numel(), device=order_S.device)
        position_S = torch.empty_like(order_S)
        if _is_grouped(index_TK.device):
            position_S[order_S] = arange_S
            return cls(token_S, expert_S, position_S, offsets_E.to(torch.int32), index_TK.shape[-1], 1, expert_S, ())
        tile = tile or tile_rows(order_S.numel() / num_experts)
        tiles_E = (counts_E + tile - 1) // tile
        starts_E = (tiles_E.cumsum(0) - tiles_E) * tile
        expert_N = torch.repeat_interleave(tiles_E)
        padded_S = arange_S + (starts_E - offsets_E + counts_E).index_select(0, expert_S)
        token_P = torch.zeros(expert_N.numel() * tile, dtype=token_S.dtype)
        token_P[padded_S] = token_S
        position_S[order_S] = padded_S
        spans = tuple(zip(starts_E.tolist(), counts_E.tolist(), strict=True))
        rows = token_P, expert_N.repeat_interleave(tile), position_S
        return cls(*rows, offsets_E.to(torch.int32), index_TK.shape[-1], tile, expert_N, spans)

    @classmethod
    def _even(cls, index_TK: Tensor, num_experts: int) -> RoutedRows:
        """Rows of a choice that is only imagined, to plan with: as if each expert had the same share."""
        num_rows, like = index_TK.numel(), index_TK.new_empty
        if IMAGINED_ON_GPU.get():
            each, offsets_E = like(num_rows), like(num_experts, dtype=torch.int32)
            return cls(like(num_rows), each, like(num_rows), offsets_E, index_TK.shape[-1], 1, each, ())
        tile = tile_rows(num_rows / num_experts)
        num_tiles = num_experts * -(-num_rows // (num_experts * tile))
        # All rows in the hands of a few: as many bytes, and not hundreds of products to imagine.
        few = min(num_experts, 4)
        spans = [(place * num_rows // few, num_rows // few) for place in range(few)]
        spans += [(0, 0)] * (num_experts - few)
        rows = like(num_tiles * tile), like(num_tiles * tile), like(num_rows), like(num_experts, dtype=torch.int32)
        return cls(*rows, index_TK.shape[-1], tile, like(num_tiles), tuple(spans))

    def pick(self, numbers: tuple[int, ...]) -> tuple[Tensor, RoutedRows]:
        """Of rows without padding which (C) are these experts', and those by themselves, counted as in `numbers`."""
        place_E = torch.full_like(self.offsets_E, -1)
        place_E[list(numbers)] = torch.arange(len(numbers), dtype=place_E.dtype, device=place_E.device)
        place_P = place_E.index_select(0, self.expert_P)
        rows_C = (place_P >= 0).nonzero().squeeze(1)
        place_C1 = place_P.index_select(0, rows_C).to(torch.int64).unsqueeze(1)
        return rows_C, self.sort(place_C1, len(numbers), tile=1)

    @cached_property
    def tiles(self) -> Tiles:
        """Where rows without padding stand in tiles; found once a layer."""
        return Tiles.of(self.expert_P, self.offsets_E)

    def pad_rank(self, rank: int, itemsize: int) -> int:
        """The smallest width ≥ `rank` of the update that the products take: a GPU's want whole 16 bytes a row."""
        return rank if self.spans else -(-rank * itemsize // 16) * 16 // itemsize

    def pad_weights(self, weight_TK: Tensor) -> Tensor:
        """The gate weight of each row, 0 for padding: (T, K) → (P, 1)."""
        weight_P = weight_TK.new_zeros(self.token_P.numel())
        weight_P[self.position_S] = weight_TK.reshape(-1)
        return weight_P.unsqueeze(1)

    def as_chosen(self, value_P: Tensor) -> Tensor:
        """(P, ...) in order of the experts → (S, ...) as the router chose, padding left out."""
        return value_P.index_select(0, self.position_S)

    def combine(self, y_PD: Tensor, weight_TK: Tensor) -> Tensor:
        """Sum each token's K rows by their weights: (P, D) → (T, D)."""
        y_TKD = self.as_chosen(y_PD).view(-1, self.num_chosen, y_PD.shape[-1])
        return torch.bmm(weight_TK.to(y_PD.dtype).unsqueeze(1), y_TKD).squeeze(1)

    def sum_back(self, dx_PD: Tensor) -> Tensor:
        """Sum each token's K rows: (P, D) → (T, D)."""
        return self.as_chosen(dx_PD).view(-1, self.num_chosen, dx_PD.shape[-1]).sum(1)

    def linear(
        self, x: Tensor, weight: Tensor | QuantizedWeight, lora: UnpackedLora | None
    ) -> tuple[Tensor, Tensor | None]:
        """`y = x Wᵀ + s (x Aᵀ) Bᵀ` and `h = x Aᵀ`: x (P, in), W (E, out, in) → (P, out), (P, R)."""
        y = self.times(x, weight.transpose(1, 2))
        if lora is None:
            return y, None
        if not self.spans and not is_fused(x.device, x.dtype):
            return self.tiles.add_update(y, x, lora.a, lora.bt, lora.scale)
        if not self.spans:
            h = functional.grouped_mm(x, lora.a.transpose(1, 2), offs=self.offsets_E)
            return y.add_(functional.grouped_mm(h, lora.bt, offs=self.offsets_E), alpha=lora.scale), h
        lora = self._tiled(lora)
        h = torch.bmm(self._tiles(x), lora.a.transpose(1, 2))
        self._tiles(y).baddbmm_(h, lora.bt, alpha=lora.scale)
        return y, h.view(-1, h.shape[-1])

    def linear_backward(
        self,
        dy: Tensor,
        x: Tensor | None,
        h: Tensor | None,
        weight: Tensor | QuantizedWeight,
        lora: UnpackedLora | None,
        weight_P1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of `linear` with respect to x, A and B, the latter two packed as PEFT packs them.

        With `weight_P1`, dy is taken before the rows' gate weights: dA and dB get them, dx is returned without.
        """
        dx = self.times(dy, weight)
        if lora is None or x is None or h is None:
            return dx, None, None
        if not self.spans and not is_fused(dy.device, dy.dtype):
            da, dbt = self.tiles.add_gradients(dx, dy, x, h, (lora.a, lora.bt), lora.scale, weight_P1)
            da, dbt = da[:, : lora.rank], dbt[:, : lora.rank]
        elif not self.spans:
            dh = functional.grouped_mm(dy, lora.bt.transpose(1, 2), offs=self.offsets_E)
            dx.add_(functional.grouped_mm(dh, lora.a, offs=self.offsets_E), alpha=lora.scale)
            h, dh = _weighted(h, weight_P1), _weighted(dh, weight_P1)
            da = self.outer(dh, x)[:, : lora.rank]
            dbt = self.outer(h, dy)[:, : lora.rank]
        else:
            tiled = self._tiled(lora)
            dy_tiles = self._tiles(dy)
            dh = torch.bmm(dy_tiles, tiled.bt.transpose(1, 2))
            self._tiles(dx).baddbmm_(dh, tiled.a, alpha=lora.scale)
            h, dh = _weighted(h, weight_P1), _weighted(dh.view_as(h), weight_P1)
            da = self._sum_tiles(torch.bmm(self._tiles(dh).transpose(1, 2), self._tiles(x)))
            dbt = self._sum_tiles(torch.bmm(self._tiles(h).transpose(1, 2), dy_tiles))
        # PEFT's packing: A (E·R, in) is expert-major, B (out, R·E) rank-major.
        packed_a = da.mul_(lora.scale).reshape(-1, da.shape[-1])
        packed_b = dbt.mul_(lora.scale).transpose(0, 1).reshape(-1, dbt.shape[-1]).t()
        return dx, packed_a, packed_b

    def times(self, x: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
        """Each expert's rows times its matrix: x (P, in), weight (E, in, out) → (P, out), padding rows 0."""
        if not self.spans:
            if isinstance(weight, QuantizedWeight):
                return self._by_portions(x, weight)
            return functional.grouped_mm(x, weight, offs=self.offsets_E)
        y = x.new_zeros(x.shape[0], weight.shape[-1])
        matrices = weight.unbind() if isinstance(weight, Tensor) else weight
        for expert, (start, count) in enumerate(self.spans):
            if count:
                torch.mm(x.narrow(0, start, count), matrices[expert], out=y.narrow(0, start, count))
        return y

    def _by_portions(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        """The same by grouped products over as many experts at a time as PORTION_BYTES hold.

        Which rows are a portion's is known on the GPU alone. So it is given all rows from its first on and computes its
        own; what then stands in the places of later ones is overwritten by the portions that follow.
        """
        num_rows, num_experts = x.shape[0], weight.shape[0]
        at_once = max(1, PORTION_BYTES // (weight.rows * weight.cols * weight.element_size()))
        if num_rows < num_experts:
            return self._row_by_row(x, weight, at_once)
        if num_experts <= at_once:
            return functional.grouped_mm(x, weight.matrices(slice(None)), offs=self.offsets_E)
        y = x.new_empty(num_rows + 1, weight.shape[-1])  # the last takes what is nobody's
        arange_P = torch.arange(num_rows, device=x.device)
        start = self.offsets_E.new_zeros(())
        firsts = range(0, num_experts, at_once)
        for first in firsts[:2] if IMAGINED_ON_GPU.get() else firsts:  # the others would be like them
            ends = self.offsets_E[first : first + at_once]
            place_P = arange_P + start
            own = x.index_select(0, place_P.clamp(max=num_rows - 1)) if first else x
            portion = weight.matrices(slice(first, first + at_once))
            product = functional.grouped_mm(own, portion, offs=ends - start)
            y.index_copy_(0, place_P.clamp(max=num_rows), product)
            start = ends[-1]
        return y[:-1]

    def _row_by_row(self, x: Tensor, weight: QuantizedWeight, at_once: int) -> Tensor:
        """The same where there are fewer rows than experts, as while one answer is written: a matrix for each row."""
        parts = zip(x.split(at_once), self.expert_P.split(at_once), strict=True)
        products = [torch.bmm(rows.unsqueeze(1), weight.matrices(expert)).squeeze(1) for rows, expert in parts]
        return torch.cat(products)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Each expert's leftᵀ right, padding left out: (P, M), (P, N) → (E, M, N), 0 for an expert without rows."""
        if not self.spans:
            products = functional.grouped_mm(left.t(), right, offs=self.offsets_E)
            # Not every GPU writes the zeros of an expert without rows.
            is_empty_E = self.offsets_E.diff(prepend=self.offsets_E.new_zeros(1)) == 0
            return products.masked_fill_(is_empty_E.view(-1, 1, 1), 0.0)
        products = left.new_zeros(len(self.spans), left.shape[1], right.shape[1])
        for (start, count), product in zip(self.spans, products.unbind(), strict=True):
            if count:
                torch.mm(left.narrow(0, start, count).t(), right.narrow(0, start, count), out=product)
        return products

    def _tiles(self, rows: Tensor) -> Tensor:
        """(P, width) → (N, tile, width), a view."""
        return rows.view(-1, self.tile, rows.shape[-1])

    @property
    def _is_one_tile_each(self) -> bool:
        """Whether tiles and experts are the same thing, so that nothing needs to be picked or summed."""
        return self.expert_N.numel() == len(self.spans) and all(count for _, count in self.spans)

    def _tiled(self, lora: UnpackedLora) -> UnpackedLora:
        return lora if self._is_one_tile_each else lora.pick(self.expert_N)

    def _sum_tiles(self, per_tile: Tensor) -> Tensor:
        """(N, R, width) → (E, R, width)."""
        if self._is_one_tile_each:
            return per_tile
        return per_tile.new_zeros(len(self.spans), *per_tile.shape[1:]).index_add_(0, self.expert_N, per_tile)


def is_fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a grouped product is one kernel there.

    On other GPUs, and in other formats, torch makes it of a product for each expert, and waits for their numbers of
    rows. An accelerator that is no CUDA device is taken at its word.
    """
    if device.type != "cuda":
        return True
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device)[0] in _FUSED_ON


def _is_grouped(device: torch.device) -> bool:
    """Whether one kernel does the products of all experts; on a CPU one after the other is faster."""
    return device.type != "cpu"


def as_out_in(weight: AnyWeight, is_transposed: bool) -> AnyWeight:
    """A fused weight as (E, out, in), whichever way the family stores it."""
    return weight.transpose(1, 2) if is_transposed else weight


def _weighted(rows: Tensor, weight_P1: Tensor | None) -> Tensor:
    return rows if weight_P1 is None else rows * weight_P1
