"""Which experts a model uses: per layer and expert the routed rows and their gate weight, counted as it runs.

The counts are taken where the router's choice is handed to the experts, which every family does alike: what a MoE
block returns differs, and on DeepSeek-V3 tells nothing of the choice.

Letters: T tokens, E routed experts, K experts chosen per token, L layers of routed experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.moe.anatomy import find_experts, outermost_name, plain_name

_UNCOUNTED: ContextVar[bool] = ContextVar("_UNCOUNTED", default=False)


@dataclass(frozen=True)
class Routing:
    """What the routers of L layers chose among E experts: routed rows and sums of gate weight, both (L, E) float64.

    A layer that saw no tokens counts as balanced: there is nothing to be said against it.
    """

    layers: tuple[str, ...]
    load_LE: Tensor
    weight_LE: Tensor
    num_chosen: int = 1
    """K, as far as a pass has shown it."""

    @classmethod
    def nothing(cls, layers: tuple[str, ...], num_experts: int) -> Routing:
        """No tokens seen."""
        zeros_LE = torch.zeros(len(layers), num_experts, dtype=torch.float64)
        return cls(layers, zeros_LE, zeros_LE.clone())

    def __add__(self, other: Routing) -> Routing:
        return replace(self, load_LE=self.load_LE + other.load_LE, weight_LE=self.weight_LE + other.weight_LE)

    @property
    def num_experts(self) -> int:
        """E, the number of routed experts."""
        return self.load_LE.shape[1]

    @property
    def rows_L(self) -> Tensor:
        """Routed rows of each layer: K for every token."""
        return self.load_LE.sum(1)

    @property
    def share_LE(self) -> Tensor:
        """Each expert's share of its layer's routed rows; 0 where a layer saw none."""
        return self.load_LE / self.rows_L.clamp(min=1).unsqueeze(1)

    @property
    def weight_share_LE(self) -> Tensor:
        """Each expert's share of its layer's gate weight; 0 where there is none."""
        total_L = self.weight_LE.sum(1)
        return self.weight_LE / torch.where(total_L == 0, 1.0, total_L).unsqueeze(1)

    @property
    def entropy_L(self) -> Tensor:
        """Entropy of the load over log E: 1 is even, 0 is a single expert."""
        if self.num_experts < 2:
            return torch.ones_like(self.rows_L)
        entropy_L = torch.special.entr(self.share_LE).sum(1) / math.log(self.num_experts)
        return torch.where(self.rows_L > 0, entropy_L, 1.0)

    @property
    def max_violation_L(self) -> Tensor:
        """MaxVio: the largest load over the mean load, minus 1; 0 is even, E - 1 a single expert."""
        violation_L = self.share_LE.amax(1) * self.num_experts - 1
        return torch.where(self.rows_L > 0, violation_L, 0.0)

    @property
    def dead_LE(self) -> Tensor:
        """Which experts got no token, in the layers that saw some."""
        return (self.load_LE == 0) & (self.rows_L > 0).unsqueeze(1)

    def drift_L(self, other: Routing) -> Tensor:
        """Total variation distance of the loads, 0 to 1: the share of rows that go to other experts than in `other`."""
        drift_L = (self.share_LE - other.share_LE).abs().sum(1) / 2
        return torch.where((self.rows_L > 0) & (other.rows_L > 0), drift_L, 0.0)


@contextmanager
def uncounted() -> Iterator[None]:
    """Inside, no monitor counts: as while answers are generated, where padding behind an answer's end looks real."""
    token = _UNCOUNTED.set(True)
    try:
        yield
    finally:
        _UNCOUNTED.reset(token)


class RoutingMonitor:
    """Counts what a model's routers choose, from its creation until `close`; `take` reads and begins anew.

    Forward passes that gradient checkpointing repeats are counted once, and padded tokens not at all. Counts stay on
    the experts' device until they are taken.
    """

    def __init__(self, model: nn.Module) -> None:
        blocks = find_experts(model)
        self.layers = tuple(plain_name(block.name) for block in blocks)
        self.num_experts = max((block.num_experts for block in blocks), default=0)
        self._counts: list[_Count | None] = [None] * len(blocks)
        tensors = (tensor for block in blocks for tensor in chain(block.module.parameters(), block.module.buffers()))
        self._device = next((tensor.device for tensor in tensors), None)
        self._is_real_T: Tensor | None = None
        self._num_chosen = 1
        self._hooks = []
        for layer, block in enumerate(blocks):
            # PEFT's outermost wrapper is what is called; what it wraps may never be.
            called = model.get_submodule(outermost_name(block.name))
            self._hooks.append(called.register_forward_pre_hook(partial(self._count, layer)))
        if blocks and hasattr(model, "get_decoder"):
            decoder = model.get_decoder()
            self._hooks.append(decoder.register_forward_pre_hook(self._look_at_mask, with_kwargs=True))

    def take(self, of_all_processes: bool = False) -> Routing:
        """What was counted since the last time, in one copy to the host.

        With `of_all_processes` the counts of all of them are summed; then every process must call it.
        """
        if not self.layers:
            return Routing.nothing((), 0)
        nothing = torch.zeros(2, self.num_experts, dtype=torch.float64, device=self._device)
        counts = [nothing if count is None else count.as_float64().to(nothing.device) for count in self._counts]
        taken_L2E = torch.stack(counts)
        self._counts = [None] * len(self.layers)
        if of_all_processes and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(taken_L2E)
        load_LE, weight_LE = taken_L2E.cpu().unbind(1)
        return Routing(self.layers, load_LE.contiguous(), weight_LE.contiguous(), self._num_chosen)

    def close(self) -> None:
        """Stop counting for good."""
        while self._hooks:
            self._hooks.pop().remove()

    @torch.no_grad()
    def _look_at_mask(self, decoder: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Remember which tokens of this pass are real; None where all may be."""
        self._is_real_T = None
        mask = given.get("attention_mask")
        tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        if isinstance(mask, Tensor) and mask.dim() == 2 and tokens is not None:
            # With a cache the mask is longer than what is given: it covers the past as well.
            self._is_real_T = mask[:, -tokens.shape[1] :].reshape(-1) != 0
        positions = given.get("position_ids")
        if self._is_real_T is None and isinstance(positions, Tensor) and positions.dim() == 2:
            self._is_real_T = is_token(positions).reshape(-1)

    @torch.no_grad()
    def _count(self, layer: int, experts: nn.Module, args: tuple[Any, ...]) -> None:
        # Inside a backward pass the engine has a task: what is computed there has been computed before.
        if _UNCOUNTED.get() or len(args) != 3 or torch._C._current_graph_task_id() != -1:
            return
        _, index_TK, weight_TK = args
        self._num_chosen = index_TK.shape[-1]
        count = self._counts[layer]
        if count is None:
            count = self._counts[layer] = _Count.empty(self.num_experts, index_TK.device)
        is_real_T = self._is_real_T
        is_known = is_real_T is not None and is_real_T.numel() == index_TK.shape[0]
        count.add(index_TK, weight_TK, is_real_T if is_known else None)


def is_token(positions_BT: Tensor) -> Tensor:
    """Which places of packed sequences hold a token: padding has position 0 throughout, an example goes on with 1."""
    is_next_0_BT = torch.ones_like(positions_BT, dtype=torch.bool)
    is_next_0_BT[:, :-1] = positions_BT[:, 1:] == 0
    return (positions_BT != 0) | ~is_next_0_BT


@dataclass(frozen=True)
class _Count:
    """One layer's running counts, with a last place for the rows that other processes' experts take."""

    load_E: Tensor
    weight_E: Tensor

    @classmethod
    def empty(cls, num_experts: int, device: torch.device) -> _Count:
        exact = torch.float64 if device.type == "cpu" else torch.float32
        return cls(*(torch.zeros(num_experts + 1, dtype=dtype, device=device) for dtype in (torch.int64, exact)))

    def add(self, index_TK: Tensor, weight_TK: Tensor, is_real_T: Tensor | None) -> None:
        """Nothing here waits for the device."""
        index_S = index_TK.reshape(-1).to(torch.int64)
        weight_S = weight_TK.to(self.weight_E.dtype)
        ones_S = torch.ones_like(index_S)
        if is_real_T is not None:
            real_TK = is_real_T.to(index_TK.device).unsqueeze(1).expand_as(index_TK)
            ones_S = real_TK.reshape(-1).to(torch.int64)
            weight_S = weight_S * real_TK
        self.load_E.scatter_add_(0, index_S, ones_S)
        self.weight_E.scatter_add_(0, index_S, weight_S.reshape(-1))

    def as_float64(self) -> Tensor:
        """(2, E): load and gate weight."""
        return torch.stack([self.load_E.double(), self.weight_E.double()])[:, :-1]
