"""Bytes of a run before it runs: counted on the meta model, traced, and held against real models and real steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Base, Parallel, Schedule, Train
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.estimate import Batch, Method, Settings, estimate, plan
from dsr1_tune.models.trained.lora import audit
from dsr1_tune.moe.quantized_experts import memory_of
from tests.models.memory_plan.conftest import own, with_lora

SMALL = Batch(2, 32, 2, 32)


def test_estimate_of_dpo_takes_pairs(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    supervised, pairs = (estimate(base, method, Settings(), SMALL) for method in ("lora", "dpo"))
    assert pairs.parts["activations"] > 1.6 * supervised.parts["activations"]  # twice the sequences
    assert pairs.num_trained == supervised.num_trained


def test_estimate_has_the_parts_of_the_real_model(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    adapted = with_lora(load(Base(model=str(tiny_base), dtype="float32")).model)
    planned = estimate(base, "lora", Settings(dtype="float32"), SMALL)
    assert planned.num_trained == sum(line.num_trained for line in audit(adapted))
    assert planned.parts["weights"] + planned.parts["adapter"] == pytest.approx(memory_of(adapted), rel=0.001)
    assert planned.parts["gradients"] == planned.parts["adapter"]
    assert planned.parts["optimizer"] == 2 * planned.parts["adapter"]


def test_estimate_in_4_bits_is_that_of_the_real_model(tiny_base: Path) -> None:
    planned = estimate(describe(Base(model=str(tiny_base))), "qlora", Settings(), SMALL)
    loaded = load(Base(model=str(tiny_base)), quantized=True).model
    assert planned.parts["weights"] == pytest.approx(memory_of(loaded), rel=0.001)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "bytes_each"),
    [("adamw", "float32", 8), ("adamw", "bfloat16", 8), ("adamw_8bit", "float32", 2.1)],
)
def test_estimate_counts_the_optimizers_state(tiny_base: Path, optimizer: Any, dtype: str, bytes_each: float) -> None:
    settings = Settings(schedule=Schedule(optimizer=optimizer), dtype=dtype)
    planned = estimate(describe(Base(model=str(tiny_base))), "full", settings, SMALL)
    assert planned.parts["optimizer"] / planned.num_trained == pytest.approx(bytes_each, rel=0.15)
    assert planned.parts["gradients"] / planned.num_trained == (4 if dtype == "float32" else 2)


def test_estimate_of_adafactors_state_is_the_real_ones(tiny_base: Path) -> None:
    from transformers import Adafactor

    model = own(load(Base(model=str(tiny_base), dtype="float32")).model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = Adafactor(weights, lr=1e-3, scale_parameter=False, relative_step=False)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    settings = Settings(schedule=Schedule(optimizer="adafactor"), dtype="float32")
    planned = estimate(describe(Base(model=str(tiny_base))), "full", settings, SMALL)
    assert planned.parts["optimizer"] == pytest.approx(sum(t.numel() * 4 for t in held), rel=0.02)


def test_estimate_of_a_part_of_the_weights(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    some = estimate(base, "full", Settings(train=Train(only=("attention",))), SMALL)
    assert some.num_trained == base.sizes["attention"]
    with pytest.raises(ModelError, match="last:9"):
        estimate(base, "full", Settings(train=Train(only=("last:9",))), SMALL)


def test_estimate_divides_for_fsdp_and_adds_buckets_for_ddp(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    alone = estimate(base, "full", Settings(), SMALL)
    ddp = estimate(base, "full", Settings(parallel=Parallel(processes=4)), SMALL)
    shared = estimate(base, "full", Settings(parallel=Parallel(processes=4, strategy="fsdp2")), SMALL)
    assert ddp.parts["gradients"] == 2 * alone.parts["gradients"]
    assert shared.parts["optimizer"] == alone.parts["optimizer"] // 4


def test_plan_advice_that_is_taken_makes_it_fit(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    batch = Batch(64, 256, 1, 256)
    large = estimate(base, "lora", Settings(), batch)
    have = large.fixed + (large.needed - large.fixed) // 3
    advised = plan(base, Settings(), batch, have, ("lora",)).advice["lora"]
    assert advised.startswith("schedule.batch_size=")
    rows = int(advised.split("=")[1].split()[0])
    assert 1 <= rows < 64
    assert plan(base, Settings(), Batch(rows, 256, 1, 256), have, ("lora",)).fits("lora")


def test_plan_chooses_what_fits(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    both: tuple[Method, ...] = ("lora", "qlora")
    made = plan(base, Settings(), SMALL, 64 * GIB, both)
    assert made.choice == "lora" and not made.advice
    assert plan(base, Settings(), SMALL, GIB // 8, both).choice is None


@pytest.mark.slow
def test_estimate_of_qlora_of_671_b(v3: PlannedBase) -> None:
    made = estimate(v3, "qlora", Settings(device="cuda"), Batch(1, 1024, 1, 1024))
    assert made.parts["weights"] / GIB == pytest.approx(325, rel=0.01)  # 4.127 bits, and what is not quantized
