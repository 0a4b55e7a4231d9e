"""Which ways of training fit into the memory that there is, and what to turn for those that do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from dsr1_tune.config import Parallel, Schedule
from dsr1_tune.errors import ModelError
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.base import PlannedBase
from dsr1_tune.models.memory_plan.estimate import METHODS, Batch, Estimator, MemoryEstimate, Method, Settings
from dsr1_tune.models.weights.shard import check_shared
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_shard import ExpertParallel

Refuse = Callable[[Method, Parallel], str]
"""Why the command of a method would refuse to run so; "" where it would not."""
_MOST_PROCESSES = 128


@dataclass(frozen=True)
class Room:
    """The memory that there is, in bytes."""

    each: int
    """For each process."""
    shared_by: int = 0
    """If it is one machine's main memory, how many processes `each` was reckoned for; more of them have less."""
    host: int | None = None
    """Main memory beside the GPUs, for all processes together; None where it is not looked at."""

    def of(self, processes: int) -> int:
        """What each of so many processes may take."""
        return self.each * self.shared_by // processes if self.shared_by else self.each

    def holds(self, one: MemoryEstimate) -> bool:
        """Whether there is enough for an estimate."""
        fits_host = self.host is None or one.host_of_all <= self.host
        return one.needed <= self.of(one.parallel.processes) and fits_host and one.is_traced


@dataclass(frozen=True)
class Plan:
    """Estimates for the ways of training, what there is, and what to turn where it is not enough."""

    base: PlannedBase
    room: Room
    batch: Batch
    estimates: tuple[MemoryEstimate, ...]
    refused: Mapping[Method, str] = field(default_factory=dict)
    """Why a run with these settings would not begin, by method."""
    advice: Mapping[Method, str] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Bytes for each process."""
        return self.room.each

    def fits(self, method: Method) -> bool:
        """Whether a way of training is allowed and fits in the memory."""
        return method not in self.refused and self.room.holds(self.of(method))

    def of(self, method: Method) -> MemoryEstimate:
        """The estimate for one of them that is not refused."""
        return next(one for one in self.estimates if one.method == method)

    @property
    def methods(self) -> tuple[Method, ...]:
        """Those that were looked at, in their order."""
        estimated = {one.method for one in self.estimates}
        return tuple(method for method in METHODS if method in estimated | self.refused.keys())

    @property
    def choice(self) -> Method | None:
        """The first that fits of lora, qlora: adapters first, in 16 or 32 bits where there is room."""
        ways: tuple[Method, ...] = ("lora", "qlora")
        return next((method for method in ways if method in self.methods and self.fits(method)), None)


def plan(
    base: PlannedBase,
    settings: Settings,
    batch: Batch,
    room: Room,
    methods: tuple[Method, ...] = METHODS,
    refuse: Refuse = lambda method, parallel: "",
) -> Plan:
    """What each of `methods` takes on `base`, and what to turn where that is more than there is or `refuse` says no."""
    refuse = partial(refusal_on, base, refuse)
    possible = [method for method in methods if method != "esft" or find_experts(base.model)]
    refused = {method: why for method in possible if (why := refuse(method, settings.parallel))}
    estimator = Estimator(base, settings, batch)
    estimates = {method: estimator.estimate(method, memory=room.each) for method in possible if method not in refused}
    advisor = _Advisor(estimator, room, estimates, refuse)
    advice = {method: advisor.advise(one) for method, one in estimates.items() if not room.holds(one)}
    return Plan(base, room, batch, tuple(estimates.values()), refused, advice)


def refusal_on(base: PlannedBase, refuse: Refuse, method: Method, parallel: Parallel) -> str:
    """Why a run would not begin: for its settings, or for what the base is."""
    why = refuse(method, parallel)
    if why or parallel.strategy != "experts":
        return why
    try:
        check_shared(base.model, ExpertParallel(0, parallel.processes))
    except ModelError as error:
        return f"{error.message}; {error.hint}"
    return ""


@dataclass(frozen=True)
class _Advisor:
    """What helps where something does not fit; nothing that the command would refuse, or that would not fit either."""

    estimator: Estimator
    room: Room
    estimates: Mapping[Method, MemoryEstimate]
    refuse: Refuse

    def advise(self, one: MemoryEstimate) -> str:
        """The settings to turn for a way of training that does not fit."""
        if one.needed <= self.room.of(one.parallel.processes):
            return "a machine with more main memory, or fewer processes"
        if lighter := self._lighter(one):
            return lighter
        shorter = self._shorter(one)
        return (f"{shorter} or " if shorter else "") + self._otherwise(one)

    def _lighter(self, one: MemoryEstimate) -> str:
        """The settings to train on the same sequences in less memory; "" where there are none."""
        schedule, whole = self.estimator.settings.schedule, one.batch.rows
        checkpointed = schedule.model_copy(update={"gradient_checkpointing": True})
        added = "" if schedule.gradient_checkpointing else " schedule.gradient_checkpointing=true"
        if added and self._share_left(one):
            one = self._with(one, checkpointed, one.batch)
            if self.room.holds(one):
                return added.strip()
        rows = min(math.floor(whole * self._share_left(one)), whole - 1)
        while rows >= 1:
            if self.room.holds(self._with(one, checkpointed, replace(one.batch, rows=rows))):
                accumulate = schedule.gradient_accumulation_steps * math.ceil(whole / rows)
                return f"schedule.batch_size={rows} schedule.gradient_accumulation_steps={accumulate}{added}"
            rows //= 2
        return ""

    def _shorter(self, one: MemoryEstimate) -> str:
        """Single sequences, cut to fewer tokens; "" where that would not do."""
        schedule, batch = self.estimator.settings.schedule, one.batch
        tokens = math.floor(batch.tokens * batch.rows * self._share_left(one) / 64) * 64
        cut = Batch(1, tokens, batch.eval_rows, min(batch.eval_tokens, tokens))
        fits = 64 <= tokens < batch.tokens and self.room.holds(self._with(one, schedule, cut))
        return f"schedule.batch_size=1 schedule.max_tokens={tokens}" if fits else ""

    def _share_left(self, one: MemoryEstimate) -> float:
        """There is room for so much of what a batch takes; 0 where none helps, as another phase takes too much."""
        have = self.room.of(one.parallel.processes)
        phases = {phase: size - one.mapped.get(phase, 0) for phase, size in one.phases.items()}
        # What a step leaves behind is in the phases after it, too.
        others = max(size - one.parts["gaps"] for phase, size in phases.items() if phase != "step")
        by_batch = phases["step"] - one.fixed
        if not one.is_traced or others > have or by_batch <= 0:
            return 0.0
        return max((have - one.fixed) / by_batch, 0.0)

    def _with(self, one: MemoryEstimate, schedule: Schedule, batch: Batch) -> MemoryEstimate:
        """The same way of training with another schedule and other batches: what is advised is tried before."""
        have = self.room.of(one.parallel.processes)
        return self.estimator.otherwise(schedule, batch).estimate(one.method, one.parallel, have)

    def _otherwise(self, one: MemoryEstimate) -> str:
        """Where a smaller batch does not help."""
        settings = self.estimator.settings
        is_in_32_bits = one.method in ("full", "esft") and settings.schedule.optimizer in ("auto", "adamw")
        in_8_bits = settings.schedule.model_copy(update={"optimizer": "adamw_8bit"})
        may_be_8bit = is_in_32_bits and one.parallel.strategy == "ddp"
        if may_be_8bit and self.room.holds(self._with(one, in_8_bits, one.batch)):
            return "schedule.optimizer=adamw_8bit"
        in_4_bits = self.estimates.get("qlora")
        if one.method != "qlora" and in_4_bits and self.room.holds(in_4_bits):
            return "qlora"
        if placed := next(self._placements(one.method), None):
            number, strategy = placed.parallel.processes, placed.parallel.strategy
            each = f"{placed.needed / GIB:,.1f} GiB each"
            where = "processes" if settings.device == "cpu" else "GPUs"
            whole = " parallel.powersgd_rank=0" if settings.parallel.powersgd_rank else ""
            return f"--processes {number} --set parallel.strategy={strategy}{whole} ({number} {where}, {each})"
        return "a smaller base, or a machine with more memory"

    def _placements(self, method: Method) -> Iterator[MemoryEstimate]:
        """Numbers of processes and ways to share the work out that fit, the fewest first."""
        base, asked = self.estimator.base, self.estimator.settings.parallel
        for number in range(2, _MOST_PROCESSES + 1):
            strategies = ("experts", "fsdp2") if number <= base.num_experts else ("fsdp2",)
            for strategy in strategies:
                changes = {"processes": number, "strategy": strategy, "powersgd_rank": 0}
                parallel = asked.model_copy(update=changes)
                if self.refuse(method, parallel):
                    continue
                placed = self.estimator.estimate(method, parallel, self.room.of(number))
                if self.room.holds(placed):
                    yield placed
