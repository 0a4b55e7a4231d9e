"""Experts that were chosen before are used again, with weights that the router computes anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.replay import FREE, RoutingReplay, Weighing, as_sequences, check_replay
from tests.conftest import tiny_config

IDS = torch.arange(2, 20).view(2, 9)


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(family)).eval()


@contextmanager
def replaying(model: Any) -> Iterator[RoutingReplay]:
    replay = RoutingReplay(model)
    try:
        yield replay
    finally:
        replay.close()


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    logits: Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe", "mixtral"])
def test_replay_of_the_routers_own_choice_changes_nothing(family: str) -> None:
    model = model_of(family)
    free = logits_of(model)
    with replaying(model) as replay:
        with replay.noting() as noted:
            logits_of(model)
        routing_LBSK = torch.stack([passes[0] for passes in noted]).unflatten(1, IDS.shape)
        replay.is_counting = True
        replay.use(routing_LBSK)
        torch.testing.assert_close(logits_of(model), free)
        assert replay.take_share() == 0
    assert torch.equal(logits_of(model), free)  # closed, nothing is left behind


def test_replay_sends_tokens_where_it_says_and_counts_how_often_routers_would_not() -> None:
    model = model_of("qwen3_moe")
    free = logits_of(model)
    with replaying(model) as replay:
        with replay.noting() as noted:
            logits_of(model)
        own = torch.stack([passes[0] for passes in noted]).unflatten(1, IDS.shape)
        others = (own + 1) % 4
        others[:, 1] = FREE  # the second sequence goes as its routers want
        replay.is_counting = True
        replay.use(others)
        with replay.noting():  # what is noted while it is free again
            assert torch.equal(logits_of(model), free)
        replay.use(others)
        sent = logits_of(model)
        assert not torch.allclose(sent[0], free[0]) and torch.allclose(sent[1], free[1], atol=1e-5)
        assert 0 < replay.take_share() <= 1
        assert replay.take_share() == 0  # it began anew


@pytest.mark.parametrize("is_softmax", [True, False])
@pytest.mark.parametrize("is_summed_to_1", [True, False])
def test_weighing_is_found_from_what_the_router_gave(is_softmax: bool, is_summed_to_1: bool) -> None:
    logits_TE = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    index_TK = logits_TE.topk(3).indices
    router = Weighing(is_softmax, is_summed_to_1, 2.5)
    assert Weighing.of(logits_TE, router(logits_TE, index_TK), index_TK) == router
    with pytest.raises(ModelError, match="how this model's routers weigh the experts is not known"):
        Weighing.of(logits_TE, router(logits_TE, index_TK).square(), index_TK)


def test_replay_refuses_a_model_without_routers() -> None:
    with pytest.raises(ModelError, match=r"ppo\.routing_replay needs routed experts"):
        check_replay(model_of("llama"))


def test_noted_passes_become_right_padded_sequences() -> None:
    """Two answers of 3 and 2 tokens to left-padded prompts of 2 and 1, in a model of one layer with one choice."""
    first = torch.tensor([[10], [11], [-9], [20]])  # row 0: both tokens; row 1: padding, then its token
    later = [torch.tensor([[12], [21]]), torch.tensor([[13], [22]])]
    routing = as_sequences([[first, *later]], [(2, 3), (1, 2)])
    assert routing.shape == (1, 2, 5, 1)
    assert routing[0, :, :, 0].tolist() == [[10, 11, 12, 13, FREE], [20, 21, FREE, FREE, FREE]]
