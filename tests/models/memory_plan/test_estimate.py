"""Bytes of a run before it runs: counted on the meta model, traced, and held against real models and real steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Adapter, Base, Parallel, Schedule, Train
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.counting import count
from dsr1_tune.models.memory_plan.estimate import Batch, Estimator, Method, Settings, _prepare, estimate
from dsr1_tune.models.trained.lora import audit
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.quantized_experts import memory_of
from tests.conftest import tiny_config
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


def test_estimate_divides_a_step_of_fsdp_and_adds_buckets_for_ddp(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    estimator = Estimator(base, Settings(), SMALL)
    alone, ddp = estimator.estimate("full"), estimator.estimate("full", Parallel(processes=4))
    shared = estimator.estimate("full", Parallel(processes=4, strategy="fsdp2"))
    assert ddp.parts["gradients"] == 2 * alone.parts["gradients"]
    assert shared.parts["optimizer"] == alone.parts["optimizer"] // 4
    assert shared.parts["weights"] == alone.parts["weights"] // 4
    # Every process loads and measures all of it, and has it all again when it saves.
    assert shared.phases["loading"] == alone.phases["loading"]
    assert shared.phases["evaluation"] == alone.phases["evaluation"]
    assert shared.phases["saving"] > alone.parts["weights"] + shared.parts["weights"]


def test_fsdp_holds_what_is_trained_in_float32(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    parallel = Parallel(processes=2, strategy="fsdp2")
    narrow = estimate(base, "full", Settings(dtype="bfloat16", parallel=parallel), SMALL)
    wide = estimate(base, "full", Settings(dtype="float32", parallel=parallel), SMALL)
    assert narrow.parts["gradients"] == wide.parts["gradients"] == 4 * narrow.num_trained // 2
    # 16 bits of every weight, and as much again for those that are trained.
    assert narrow.parts["weights"] == pytest.approx(wide.parts["weights"], rel=0.01)


def test_experts_are_shared_out_and_the_rest_is_not(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    estimator = Estimator(base, Settings(dtype="float32"), SMALL)
    alone, shared = (estimator.estimate("lora", one) for one in (None, Parallel(processes=3, strategy="experts")))
    experts = 4 * base.sizes["routed_experts"]
    assert alone.parts["weights"] - shared.parts["weights"] == experts // 2  # 4 experts among 3: one of them has 2
    assert alone.phases["loading"] - shared.phases["loading"] >= experts // 2
    rank = Adapter().rank
    of_experts = sum(4 * rank * (sum(w.shape[1:])) * len(w) for w in fused(base))
    assert alone.parts["adapter"] - shared.parts["adapter"] == of_experts // 2
    assert shared.num_trained == alone.num_trained
    # K = 2 of 32 tokens in each of 2 rows, there and back, and twice as many where experts are chosen unevenly.
    assert shared.parts["exchange"] == 2 * 2 * (2 * 32) * 2 * 64 * 4
    assert alone.parts["exchange"] == 0
    assert alone.parts["files"] > 0 == shared.parts["files"]  # a part is read with plain reads, which map nothing


@pytest.mark.parametrize(("optimizer", "is_gathered"), [("adamw", True), ("adamw_8bit", False)])
def test_the_whole_adapter_is_put_together_in_main_memory_to_be_saved(
    tiny_base: Path, optimizer: Any, is_gathered: bool
) -> None:
    base = describe(Base(model=str(tiny_base)))
    shared, schedule = Parallel(processes=2, strategy="experts"), Schedule(optimizer=optimizer)
    here, on_gpus = (
        Estimator(base, Settings(schedule=schedule, dtype="float32", device=device), SMALL)
        for device in ("cpu", "cuda")
    )
    alone = here.estimate("lora")
    state = alone.parts["optimizer"] if is_gathered else 0
    one = here.estimate("lora", shared)
    names = ("weights", "adapter", "optimizer", "libraries", "gaps")
    assert one.phases["saving"] - sum(one.parts[name] for name in names) == alone.parts["adapter"] + state
    whole, parts = (on_gpus.estimate("lora", each) for each in (Parallel(processes=2), shared))
    experts = base.largest - base.largest_part(2)  # a part is loaded by way of main memory too, and is smaller
    assert parts.host - whole.host == alone.parts["adapter"] - 2 * 4 * experts
    assert parts.host_of_all == 2 * parts.host + state and whole.host_of_first == 0


def fused(base: PlannedBase) -> list[torch.Tensor]:
    return [getattr(one.module, name) for one in find_experts(base.model) for name in one.parameters]


def test_files_that_are_mapped_while_loading_need_not_be_there(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    planned = estimate(base, "qlora", Settings(), SMALL)
    assert planned.mapped["loading"] == base.stored_bytes
    assert planned.needed <= max(planned.phases.values()) - base.stored_bytes


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_layers_that_are_alike_are_made_once_and_counted_as_all(method: Method) -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=7, first_k_dense_replace=2)
    base = PlannedBase("tiny", Path(), config, "float32")
    settings = Settings(dtype="float32")
    prepare = _prepare(method, settings)
    some, every = (count(base, prepare, torch.float32, is_whole) for is_whole in (False, True))
    assert (some.weights, some.adapter) == (every.weights, every.adapter)
    assert {one: one.count for one in some.held} == {one: one.count for one in every.held}


@pytest.mark.slow
def test_estimate_of_qlora_of_671_b(v3: PlannedBase) -> None:
    batch = Batch(1, 1024, 1, 1024)
    made = estimate(v3, "qlora", Settings(device="cuda"), batch)
    assert made.parts["weights"] / GIB == pytest.approx(325, rel=0.01)  # 4.127 bits, and what is not quantized
    shared = estimate(v3, "qlora", Settings(device="cuda", parallel=Parallel(processes=8, strategy="experts")), batch)
    assert (shared.fixed - shared.parts["libraries"]) / 1e9 == pytest.approx(57, rel=0.1)
    assert shared.phase == "step" and shared.needed < 80 * GIB
