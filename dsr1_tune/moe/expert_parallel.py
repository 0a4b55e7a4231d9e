"""Experts that several processes share out: each row travels to the process that holds its expert, and back.

Every process has tokens of its own. A layer sorts their routed rows by expert, sends each to its expert's holder,
which computes with whatever rows have come, and weighs what comes back as one process would. The backward pass makes
the same two exchanges the other way round. So all processes must call the same layers equally often.

Letters: T tokens, E experts of the layer, K chosen per token, S = T·K routed rows, R rows received, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed

from dsr1_tune.moe.expert_shard import ExpertShard

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of the experts held here: inputs (R, D), whose they are (R, 1) and weights of 1 → (R, D)."""


def by_their_holders(shard: ExpertShard, compute: Compute, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """The experts' output (T, D) for this process's tokens, each row computed by the process that holds its expert.

    Every process must call it, with as many tokens as it likes.
    """
    trip = _Trip.of(shard, index_TK)
    rows_RD = _Dispatch.apply(trip, x_TD)
    answers_RD = compute(rows_RD, trip.expert_R1, rows_RD.new_ones(trip.expert_R1.shape))
    y_TKD = _Return.apply(trip, answers_RD)
    return torch.bmm(weight_TK.to(y_TKD.dtype).unsqueeze(1), y_TKD).squeeze(1)


@dataclass(frozen=True)
class _Trip:
    """Where the routed rows of one layer go, and how they come back."""

    shape_TK: torch.Size
    order_S: Tensor
    """The rows in order of their experts: those for one process follow one another."""
    position_S: Tensor
    """Where in that order each row stands."""
    sent: list[int]
    """Rows for each process."""
    received: list[int]
    """Rows from each process; all together R."""
    expert_R1: Tensor
    """Whose of the experts held here each row is; for none a single row of zeros is computed."""

    @classmethod
    def of(cls, shard: ExpertShard, index_TK: Tensor) -> _Trip:
        """The processes tell each other how many rows each expert gets."""
        expert_S = index_TK.reshape(-1)
        order_S = expert_S.argsort(stable=True)
        position_S = torch.empty_like(order_S)
        position_S[order_S] = torch.arange(len(order_S), device=order_S.device)
        bounds, num_processes, num_mine = shard.bounds, shard.parallel.size, len(shard.mine)
        counts_E = order_S.new_zeros(shard.num_experts)
        counts_E.scatter_add_(0, expert_S, torch.ones_like(expert_S))
        mine = counts_E.new_empty(num_processes * num_mine)
        distributed.all_to_all_single(
            mine, counts_E, [num_mine] * num_processes, [end - begin for begin, end in pairwise(bounds)]
        )
        # The host must know how much to send and to receive: waited for once a layer.
        counts = torch.cat([counts_E, mine]).tolist()
        sent = [sum(counts[begin:end]) for begin, end in pairwise(bounds)]
        from_each = range(shard.num_experts, len(counts) + 1, num_mine)
        received = [sum(counts[begin:end]) for begin, end in pairwise(from_each)]
        numbers = torch.arange(num_mine, device=order_S.device).repeat(num_processes)
        expert_R = numbers.repeat_interleave(mine, output_size=sum(received)) if sum(received) else numbers[:1]
        return cls(index_TK.shape, order_S, position_S, sent, received, expert_R.unsqueeze(1))

    @property
    def token_S(self) -> Tensor:
        """Which token each row in order of the experts is of."""
        return self.order_S // self.shape_TK[1]

    def to_holders(self, rows_SD: Tensor) -> Tensor:
        """Rows in order of their experts → the rows for the experts held here."""
        arrived = rows_SD.new_empty(sum(self.received), rows_SD.shape[1])
        distributed.all_to_all_single(arrived, rows_SD, self.received, self.sent)
        return arrived if len(arrived) else rows_SD.new_zeros(1, rows_SD.shape[1])

    def to_senders(self, rows_RD: Tensor) -> Tensor:
        """What was made of the rows received → that of the rows sent, (T, K, D) as the router chose."""
        returned = rows_RD.new_empty(sum(self.sent), rows_RD.shape[1])
        computed = rows_RD[: sum(self.received)].contiguous()
        distributed.all_to_all_single(returned, computed, self.sent, self.received)
        return returned.index_select(0, self.position_S).view(*self.shape_TK, -1)


class _Dispatch(torch.autograd.Function):
    """(T, D) → the rows for the experts held here (R, D)."""

    @staticmethod
    def forward(ctx: Any, trip: _Trip, x_TD: Tensor) -> Tensor:
        ctx.trip = trip
        return trip.to_holders(x_TD.index_select(0, trip.token_S))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, ctx.trip.to_senders(grads[0]).sum(1)


class _Return(torch.autograd.Function):
    """What the experts held here made of their rows (R, D) → what was made of this process's own (T, K, D)."""

    @staticmethod
    def forward(ctx: Any, trip: _Trip, y_RD: Tensor) -> Tensor:
        ctx.trip = trip
        return trip.to_senders(y_RD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        dy_SD = grads[0].reshape(-1, grads[0].shape[-1])
        return None, ctx.trip.to_holders(dy_SD.index_select(0, ctx.trip.order_S))
