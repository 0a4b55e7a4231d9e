"""Routers balanced while training: biases move by the loads of a step, and padding does not count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dsr1_tune.config import Base
from dsr1_tune.models.load import load
from dsr1_tune.moe.anatomy import find_routers
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.runs.trainer.router_balance import BiasRule, real_tokens

IDS = torch.randint(2, 258, (2, 30), generator=torch.Generator().manual_seed(0))


def test_bias_rule_raises_the_bias_of_experts_below_the_mean_load_and_lowers_the_others(tiny_base: Path) -> None:
    model: Any = load(Base(model=str(tiny_base))).model.train()
    (router,) = find_routers(model)
    bias_E = next(buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
    before_E = bias_E.clone()
    monitor = RoutingMonitor(model)
    rule = BiasRule(rate=0.25)
    rule.on_train_begin(None, None, None, model=model)
    model(input_ids=IDS.flip(0))  # as an evaluation between two steps, which does not count
    monitor.take()
    rule.on_step_begin(None, None, None)
    model(input_ids=IDS)
    load_E = monitor.take().load_LE[0]
    rule.on_step_end(None, None, None)
    torch.testing.assert_close(bias_E - before_E, 0.25 * torch.sign(load_E.mean() - load_E).to(bias_E))
    rule.on_train_end(None, None, None)
    moved_E = bias_E.clone()
    model(input_ids=IDS)
    rule.on_step_end(None, None, None)
    assert torch.equal(bias_E, moved_E), "a rule that has ended moves nothing"
    monitor.close()
    assert router is not None


def test_real_tokens_leaves_padding_out() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert real_tokens({"attention_mask": mask}).tolist() == [True, True, False, True, True, True]
    # Packed: two examples, of 3 and 2 tokens, and padding, whose positions are all 0.
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0]])
    assert real_tokens({"position_ids": positions}).tolist() == [True] * 5 + [False] * 2
