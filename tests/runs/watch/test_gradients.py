"""Gradient norms by group."""

from __future__ import annotations

import math

import pytest
import torch

from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.runs.watch.gradients import GradientNorms


def test_gradient_norms_by_group_are_those_of_a_plain_sum() -> None:
    from transformers import AutoModelForCausalLM

    from tests.conftest import tiny_config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    norms = GradientNorms()
    norms.measure(model)
    assert norms.take() == {}
    model(input_ids=torch.arange(20).unsqueeze(0)).logits.square().sum().backward()
    norms.measure(model, scale=4.0)
    part_of = Anatomy(model)
    wanted: dict[str, float] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            wanted[part_of(name)] = wanted.get(part_of(name), 0.0) + float((weight.grad.double() / 4).square().sum())
    found = norms.take()
    assert found == pytest.approx({part: math.sqrt(square) for part, square in wanted.items()}, rel=1e-5)
    assert len(found) >= 5 and norms.take() == {}
