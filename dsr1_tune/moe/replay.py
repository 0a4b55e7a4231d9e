"""Routing replay: the experts that were chosen while a model answered are used again when it learns from the answers.

Between generating and learning about a tenth of the routing decisions differ by rounding alone, so that the ratio of
new to old probability is off by more than was learned (arXiv 2507.18071). Which experts are used is replayed; how much
each counts is computed anew, by the router as it is now, so that gradients flow as ever.

Letters: L layers, B sequences, S tokens of each, T tokens of a forward pass, E experts, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import find_experts, find_routers

FREE = -1
"""In place of an expert's number: the router chooses by itself."""

Noted = list[list[Tensor]]
"""For each layer what was chosen, (T, K), in every forward pass in their order."""


class RoutingReplay:
    """Stands behind a model's routers: notes what they choose, or puts what was noted in its place."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ModelError as `check_replay` does."""
        check_replay(model)
        routers = find_routers(model)
        self._weighings: list[Weighing | None] = [None] * len(routers)
        self._noted: Noted | None = None
        self._wanted_LTK: Tensor | None = None
        self.is_counting = False
        self._num_differing = self._num_replayed = 0
        self._hooks = [
            router.module.register_forward_hook(partial(self._answer, layer)) for layer, router in enumerate(routers)
        ]

    @contextmanager
    def noting(self) -> Iterator[Noted]:
        """Inside, routers choose freely, and what they choose is noted."""
        self._wanted_LTK = None
        self._noted = [[] for _ in self._weighings]
        try:
            yield self._noted
        finally:
            self._noted = None

    def use(self, routing_LBSK: Tensor | None) -> None:
        """From now on tokens go where this says (FREE: where routers send them); None sets them all free.

        It holds until it is told otherwise, as gradient checkpointing asks again in the backward pass.
        """
        self._wanted_LTK = None if routing_LBSK is None else routing_LBSK.flatten(1, 2)

    def take_share(self, add: Callable[[Tensor], Tensor] = lambda x: x) -> float:
        """The share of replayed choices that routers would not have made themselves, of those that were counted.

        `add` sums a tensor over the processes. It begins anew afterwards.
        """
        counts = add(torch.tensor([self._num_differing, self._num_replayed], dtype=torch.float64))
        self._num_differing = self._num_replayed = 0
        return float(counts[0] / counts[1].clamp(min=1))

    def close(self) -> None:
        """Set the routers free for good."""
        while self._hooks:
            self._hooks.pop().remove()

    def _answer(self, layer: int, router: nn.Module, args: Any, output: tuple[Tensor, ...]) -> Any:
        logits_TE, weight_TK, index_TK = output
        if self._noted is not None:
            self._noted[layer].append(index_TK.detach().to(torch.int16))
        if self._wanted_LTK is None:
            return None
        weighing = self._weighings[layer]
        if weighing is None:
            weighing = self._weighings[layer] = Weighing.of(logits_TE, weight_TK, index_TK)
        wanted_TK = self._wanted_LTK[layer].to(index_TK)
        is_free_T1 = (wanted_TK == FREE).any(1, keepdim=True)
        chosen_TK = torch.where(is_free_T1, index_TK, wanted_TK)
        if self.is_counting:
            is_own_TK = (chosen_TK.unsqueeze(2) == index_TK.unsqueeze(1)).any(2)
            self._num_differing += int((~is_own_TK).sum())
            self._num_replayed += int((~is_free_T1).sum()) * index_TK.shape[1]
        return logits_TE, weighing(logits_TE, chosen_TK).to(weight_TK.dtype), chosen_TK


def check_replay(model: nn.Module) -> None:
    """Refuse a model without routed experts, or with routers of a kind that is not known; it may lack its weights."""
    blocks, routers = find_experts(model), find_routers(model)
    if not blocks or len(blocks) != len(routers):
        raise ModelError(
            "ppo.routing_replay needs routed experts with routers of a known kind, which this model has not",
            hint="leave ppo.routing_replay=false",
        )


@dataclass(frozen=True)
class Weighing:
    """How a router makes weights of its scores: softmax or sigmoid, summed to 1 or not, times a constant."""

    is_softmax: bool
    is_summed_to_1: bool
    scale: float = 1.0

    def __call__(self, logits_TE: Tensor, index_TK: Tensor) -> Tensor:
        """The weights (T, K) of the chosen, in float32."""
        logits_TE = logits_TE.float()
        scores_TE = logits_TE.softmax(-1) if self.is_softmax else logits_TE.sigmoid()
        weight_TK = scores_TE.gather(1, index_TK)
        if self.is_summed_to_1:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return self.scale * weight_TK

    @classmethod
    @torch.no_grad()
    def of(cls, logits_TE: Tensor, weight_TK: Tensor, index_TK: Tensor) -> Weighing:
        """The way that gives what the router itself gave. Raises ModelError where none does."""
        errors: dict[Weighing, float] = {}
        for is_softmax, is_summed_to_1 in product((True, False), (True, False)):
            plain_TK = cls(is_softmax, is_summed_to_1)(logits_TE, index_TK)
            scale = float(weight_TK.float().sum() / plain_TK.sum())
            # The scale is what a config says: 2.5, not 2.4999998.
            weighing = cls(is_softmax, is_summed_to_1, float(f"{scale:.4g}"))
            errors[weighing] = float((scale * plain_TK - weight_TK.float()).abs().max() / weight_TK.abs().max())
        best = min(errors, key=lambda weighing: errors[weighing])
        if not errors[best] < 0.01:
            raise ModelError(
                "ppo.routing_replay: how this model's routers weigh the experts is not known",
                hint="leave ppo.routing_replay=false",
            )
        return best


def as_sequences(noted: Noted, lengths: Sequence[tuple[int, int]]) -> Tensor:
    """What was noted while a left-padded batch was answered, as (L, B, S, K) for right-padded sequences, FREE on the
    rest; `lengths` are the tokens of each prompt and of its answer.

    The first pass took the prompts, each further one a token of every answer; an answer's last is never asked for.
    """
    num_rows = len(lengths)
    longest_prompt = max(prompt for prompt, _ in lengths)
    longest = max(prompt + answer for prompt, answer in lengths)
    noted = [[one.to("cpu") for one in layer] for layer in noted]
    first_LBSK = torch.stack([layer[0] for layer in noted]).unflatten(1, (num_rows, longest_prompt))
    later = [torch.stack(step) for step in zip(*(layer[1:] for layer in noted), strict=True)]
    later_LBTK = torch.stack(later, dim=2) if later else first_LBSK[:, :, :0]
    routing_LBSK = first_LBSK.new_full((len(noted), num_rows, longest, first_LBSK.shape[-1]), FREE)
    for row, (prompt, answer) in enumerate(lengths):
        num_asked = min(answer - 1, later_LBTK.shape[2])
        routing_LBSK[:, row, :prompt] = first_LBSK[:, row, longest_prompt - prompt :]
        routing_LBSK[:, row, prompt : prompt + num_asked] = later_LBTK[:, row, :num_asked]
    return routing_LBSK
