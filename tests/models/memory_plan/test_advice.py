"""What fits, and what is advised where it does not: followed, it fits and is not refused."""

from __future__ import annotations

import re
from pathlib import Path

from dsr1_tune.config import Base, Parallel, Schedule
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.advice import Room, plan
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.estimate import Batch, Estimator, Method, Settings, estimate
from tests.conftest import tiny_config

SMALL = Batch(2, 32, 2, 32)


def test_advice_that_is_taken_makes_it_fit(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    batch = Batch(64, 256, 1, 256)
    large = estimate(base, "lora", Settings(), batch)
    room = Room(large.fixed + (large.needed - large.fixed) // 3)
    advised = plan(base, Settings(), batch, room, ("lora",)).advice["lora"]
    assert advised.startswith("schedule.batch_size=")
    rows = int(advised.split("=")[1].split()[0])
    assert 1 <= rows < 64
    assert plan(base, Settings(), Batch(rows, 256, 1, 256), room, ("lora",)).fits("lora")


def test_a_smaller_batch_is_not_advised_where_another_phase_than_the_step_is_too_large() -> None:
    base = PlannedBase("wide", Path(), tiny_config("deepseek_v3", moe_intermediate_size=8192), "float32")
    parallel = Parallel(processes=8, strategy="fsdp2")
    settings, batch = Settings(dtype="float32", device="cuda", parallel=parallel), Batch(64, 256, 1, 256)
    large = estimate(base, "lora", settings, batch)
    # What a step leaves behind would be less with fewer sequences.
    others = max(size for phase, size in large.phases.items() if phase != "step") - large.parts["gaps"]
    assert large.fixed < others < large.phases["step"]
    short, enough = (
        plan(base, settings, batch, Room((others + more) // 2), ("lora",))
        for more in (large.fixed, large.phases["step"])
    )
    assert "batch_size" not in short.advice["lora"] and "max_tokens" not in short.advice["lora"]
    rows = int(enough.advice["lora"].removeprefix("schedule.batch_size=").split()[0])
    fewer = Batch(rows, 256, 1, 256)
    assert enough.room.holds(estimate(base, "lora", settings, fewer))


def test_checkpointing_is_advised_only_where_it_makes_it_fit(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    batch, every = Batch(64, 256, 1, 256), Settings(schedule=Schedule(gradient_checkpointing=False), device="cuda")
    kept = estimate(base, "lora", every, batch)
    thrown = estimate(base, "lora", Settings(device="cuda"), batch)
    assert thrown.needed < kept.needed
    room = Room((thrown.needed + kept.needed) // 2)
    assert plan(base, every, batch, room, ("lora",)).advice["lora"] == "schedule.gradient_checkpointing=true"
    room = Room(thrown.fixed + round((thrown.needed - thrown.fixed) * 0.7))
    advised = plan(base, every, batch, room, ("lora",)).advice["lora"]
    assert re.fullmatch(r"schedule.batch_size=\d+ .*_steps=\d+ schedule.gradient_checkpointing=true", advised)


def test_plan_chooses_what_fits(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    both: tuple[Method, ...] = ("lora", "qlora")
    made = plan(base, Settings(), SMALL, Room(64 * GIB), both)
    assert made.choice == "lora" and not made.advice
    assert plan(base, Settings(), SMALL, Room(100_000), both).choice is None


def test_what_is_refused_is_neither_estimated_nor_chosen_nor_advised(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))

    def refuse(method: Method, parallel: Parallel) -> str:
        return "not so" if method == "lora" or parallel.strategy == "experts" else ""

    made = plan(base, Settings(), SMALL, Room(64 * GIB), ("lora", "qlora"), refuse)
    assert made.refused == {"lora": "not so"} and not made.fits("lora")
    assert made.choice == "qlora" and [one.method for one in made.estimates] == ["qlora"]
    short = plan(base, Settings(), SMALL, Room(100_000), ("qlora",), refuse)
    assert "experts" not in short.advice["qlora"]


def test_several_processes_are_advised_where_they_fit_and_no_fewer_would() -> None:
    base = PlannedBase("wide", Path(), tiny_config("deepseek_v3", moe_intermediate_size=8192), "float32")
    settings = Settings(dtype="float32", device="cuda")
    estimator = Estimator(base, settings, SMALL)
    sizes = {number: estimator.estimate("lora", among(number)).needed for number in (1, 2, 3, 4)}
    assert sizes[2] == sizes[3]  # of four experts one process of three has two
    assert sizes[1] > sizes[2] > sizes[4]
    room = Room((sizes[2] + sizes[4]) // 2)
    advised = plan(base, settings, SMALL, room, ("lora",)).advice["lora"]
    number, strategy = re.search(r"--processes (\d+) --set parallel.strategy=(\w+)", advised).groups()  # type: ignore[union-attr]
    assert (number, strategy) == ("4", "experts")
    assert room.holds(estimator.estimate("lora", among(int(number))))


def among(number: int) -> Parallel:
    """So many processes that share the experts out."""
    return Parallel(processes=number, strategy="experts" if number > 1 else "ddp")


def test_experts_are_not_shared_among_more_processes_than_there_are_nor_of_a_dense_base(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    five = plan(base, Settings(parallel=among(5)), SMALL, Room(GIB), ("lora",))
    assert "4 experts, which cannot be shared out among 5 processes" in five.refused["lora"]
    dense = PlannedBase("dense", Path(), tiny_config("llama"), "float32")
    assert "dense model" in plan(dense, Settings(parallel=among(2)), SMALL, Room(GIB), ("lora",)).refused["lora"]
    assert not plan(base, Settings(parallel=among(4)), SMALL, Room(100_000), ("lora",)).refused


def test_nothing_is_traced_of_what_is_far_too_much(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    made = plan(base, Settings(), SMALL, Room(100_000), ("full",))
    assert not made.of("full").is_traced and not made.fits("full")
    assert made.of("full").parts["activations"] == 0 and "full" in made.advice


def test_the_main_memory_of_one_machine_is_shared_by_its_processes(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    settings = Settings(device="cuda", parallel=Parallel(processes=4))
    one = estimate(base, "lora", settings, SMALL)
    assert one.host > 0
    assert Room(GIB, host=4 * one.host).holds(one)
    made = plan(base, settings, SMALL, Room(GIB, host=4 * one.host - 1), ("lora",))
    assert not made.fits("lora") and "main memory" in made.advice["lora"]
    assert Room(100, shared_by=2).of(4) == 50 and Room(100).of(4) == 100
