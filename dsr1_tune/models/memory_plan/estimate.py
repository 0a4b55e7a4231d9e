"""Will it fit? Bytes for every way of training, from a base's config alone, before anything is downloaded or loaded.

Weights, adapter, gradients and optimizer state are counted on the meta model that would be trained (see `counting`);
what a step keeps and throws away is traced (see `trace`); what libraries take, and memory that is freed but not given
back, is measured. How much of it one of several processes has, and in which phase of a run, is as the code does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from dsr1_tune.config import Adapter, Esft, Parallel, Router, Schedule, Train
from dsr1_tune.models.load import pick_dtype
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.base import PlannedBase, dtype_named
from dsr1_tune.models.memory_plan.counting import (
    Counted,
    Held,
    bytes_of,
    count,
    optimizer_bytes,
    optimizer_name,
    trained_by_esft,
)
from dsr1_tune.models.memory_plan.trace import Step, Trace, trace
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.moe.quantized_experts import finish_nf4, reserve_nf4
from dsr1_tune.moe.routing import open_routers
from dsr1_tune.quant.nf4 import scale_map

Method = Literal["lora", "qlora", "full", "esft", "dpo"]
METHODS: tuple[Method, ...] = get_args(Method)
Phase = Literal["loading", "sharing out", "step", "evaluation", "saving", "checking"]

# Measured with benchmarks/plan.py.
_LIBRARIES = {"cpu": 0.56 * GIB, "cuda": 0.6 * GIB}
"""torch, transformers, TRL and the rest in memory; on a GPU its context and the kernels."""
_FRAGMENTATION, _FRAGMENTATION_CHECKPOINTED, _MAX_FRAGMENTATION = 0.8, 4.5, 1.15
"""On a CPU, freed memory that the allocator keeps: a share of the most that small blocks take (as it is, and with
gradient checkpointing), and at most this share of all that a step makes."""
_CACHED = 0.08
"""On a GPU, what torch's allocator holds beyond what is in use, as a share of activations."""
_HOST_LIBRARIES = 2.0 * GIB
"""What a process that trains on a GPU takes of main memory: libraries, and CUDA's own. Not measured."""
_IMBALANCE = 2
"""So many times the mean number of rows is expected where experts of a process are chosen more often than others'."""
_HOPELESS = 1.5
"""What takes so many times what there is before its first step is not traced."""


@dataclass(frozen=True)
class Batch:
    """Sequences of a forward pass and the tokens of the longest, in training and when a loss is measured."""

    rows: int
    tokens: int
    eval_rows: int
    eval_tokens: int


@dataclass(frozen=True)
class Settings:
    """What of a run's settings takes memory."""

    schedule: Schedule = field(default_factory=Schedule)
    adapter: Adapter = field(default_factory=Adapter)
    train: Train = field(default_factory=Train)
    esft: Esft = field(default_factory=Esft)
    router: Router = field(default_factory=Router)
    parallel: Parallel = field(default_factory=Parallel)
    dtype: str = "auto"
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class MemoryEstimate:
    """What a way of training takes, in bytes for each process."""

    method: Method
    num_trained: int
    parts: Mapping[str, int]
    """weights, adapter, gradients, optimizer, activations, exchange (rows that travel between processes), largest
    (temporary), files (mapped), libraries, gaps (what allocator fragmentation takes)."""
    phases: Mapping[Phase, int]
    mapped: Mapping[Phase, int]
    """Of each phase, the pages of mapped files, which the system takes back when memory is short."""
    host: int
    """Main memory that the process takes beside its GPU; 0 on a CPU."""
    host_of_first: int
    """What the first of several processes takes of it besides."""
    batch: Batch
    parallel: Parallel
    is_traced: bool = True
    """Whether activations are counted; they are not where all else is far too much."""

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return max(self.phases.values())

    @property
    def phase(self) -> Phase:
        """Where the peak is."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    @property
    def needed(self) -> int:
        """The most of all phases less mapped files."""
        return max(size - self.mapped.get(phase, 0) for phase, size in self.phases.items())

    @property
    def host_of_all(self) -> int:
        """Main memory that all processes take beside their GPUs."""
        return self.host * self.parallel.processes + self.host_of_first

    @property
    def fixed(self) -> int:
        """What no smaller batch makes smaller."""
        return sum(self.parts[name] for name in ("weights", "adapter", "gradients", "optimizer", "libraries"))


@dataclass(frozen=True)
class Estimator:
    """Estimates for one base and one kind of run; what was counted and traced once serves for every placement."""

    base: PlannedBase
    settings: Settings
    batch: Batch
    _counts: dict[tuple[Method, torch.dtype], Counted] = field(default_factory=dict)
    _traces: dict[tuple[Any, ...], Trace] = field(default_factory=dict)

    def estimate(self, method: Method, parallel: Parallel | None = None, memory: int | None = None) -> MemoryEstimate:
        """What one way of training takes; activations are left out where all else is far more than `memory`."""
        placed = _Placed(self, method, parallel or self.settings.parallel)
        is_hopeless = memory is not None and placed.least > _HOPELESS * memory
        return placed.estimate(_NOTHING if is_hopeless else None)

    def otherwise(self, schedule: Schedule, batch: Batch) -> Estimator:
        """For another schedule and other batches."""
        return Estimator(self.base, replace(self.settings, schedule=schedule), batch, self._counts)

    def dtype(self, method: Method) -> torch.dtype:
        """The number format that is computed in."""
        asked, device = self.settings.dtype, self.settings.device
        if device == "cuda" and not torch.cuda.is_available():  # a GPU that is not here: one that computes in bfloat16
            return dtype_named("bfloat16" if asked == "auto" else asked)
        return pick_dtype(asked, torch.device(device), quantized=method == "qlora")

    def counted(self, method: Method) -> Counted:
        """The tensors of the model that is trained, in one process."""
        like: Method = "lora" if method == "dpo" else method
        key = like, self.dtype(method)
        if key not in self._counts:
            by_number = method == "full" and any(name.startswith("last:") for name in self.settings.train.only)
            self._counts[key] = count(self.base, _prepare(method, self.settings), key[1], by_number)
        return self._counts[key]

    def traced(self, method: Method, step: Step) -> Trace:
        """What a step holds, or an evaluation, beside the model."""
        batch, dtype = self.batch, self.dtype(method)
        is_measured = step == "evaluation"
        made_by = method == "qlora" if is_measured else method
        key = step, made_by, dtype
        if key not in self._traces:
            scale_map(torch.device("cpu"))  # it is kept for good, and so must not be made of imagined numbers
            bare = _in_nf4 if method == "qlora" else lambda model: model
            self._traces[key] = trace(
                self.base.model.config,
                bare if is_measured else _prepare(method, self.settings, is_cut=True),
                dtype,
                batch.eval_rows if is_measured else batch.rows,
                batch.eval_tokens if is_measured else batch.tokens,
                step,
                self.settings.schedule.gradient_checkpointing,
                self.settings.device == "cuda",
                self.base.layer_kinds,
            )
        return self._traces[key]


def estimate(base: PlannedBase, method: Method, settings: Settings, batch: Batch) -> MemoryEstimate:
    """What one way of training takes."""
    return Estimator(base, settings, batch).estimate(method)


_NOTHING = Trace(0, 0, 0)


def _prepare(method: Method, settings: Settings, is_cut: bool = False) -> Callable[[Any], Any]:
    """What makes a meta model into the model that is trained; one that `is_cut` has a few layers that stand for all."""

    def prepare(model: Any) -> Any:
        if method == "full":
            only = settings.train.only
            if is_cut:
                number = model.config.num_hidden_layers
                only = tuple(name for name in only if not name.startswith("last:") or int(name[5:]) <= number)
            enable_full_training(model, only)
            open_routers(model, settings.router.mode)
            return model
        adapter = settings.adapter
        if method == "esft":  # the chosen experts' weights are counted by themselves; the rest is alike
            adapter = Adapter(groups=("routed_experts",), rank=1)
        return add_lora(_in_nf4(model) if method == "qlora" else model, adapter, settings.router)

    return prepare


def _in_nf4(model: Any) -> Any:
    reserve_nf4(model)
    finish_nf4(model)
    return model


@dataclass(frozen=True)
class _Placed:
    """One way of training in one of several processes, or alone, and what each phase of a run takes by it."""

    estimator: Estimator
    method: Method
    parallel: Parallel

    @property
    def base(self) -> PlannedBase:
        return self.estimator.base

    @property
    def settings(self) -> Settings:
        return self.estimator.settings

    @property
    def is_cpu(self) -> bool:
        return self.settings.device == "cpu"

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.estimator.dtype(self.method)

    @property
    def strategy(self) -> str:
        """How the work is shared out; "" for one process."""
        return self.parallel.strategy if self.parallel.processes > 1 else ""

    @property
    def experts_among(self) -> int:
        """How many processes share the experts out."""
        return self.parallel.processes if self.strategy == "experts" else 1

    @cached_property
    def loaded(self) -> Counted:
        """What the process loads, and has whenever no step is made."""
        return self.estimator.counted(self.method).of_process(self.experts_among)

    @cached_property
    def trained(self) -> tuple[Held, ...]:
        """What the process trains, before any of it is shared out by FSDP."""
        if self.method != "esft":
            return self.loaded.trained
        esft = self.settings.esft
        return trained_by_esft(self.base, esft, self.settings.adapter.rank, self.dtype.itemsize)

    @property
    def _is_paged(self) -> bool:
        return self.method == "qlora" and not self.is_cpu

    @cached_property
    def put_together(self) -> tuple[int, int]:
        """Bytes of main memory for all experts' A and B, and for their optimizer's state, where they are shared out.

        Both are put together in the first process to be saved, 8-bit state excepted; an adapter that is gone on with
        is read whole in every process.
        """
        if self.strategy != "experts":
            return 0, 0
        whole, schedule = self.estimator.counted(self.method), self.settings.schedule
        is_8bit = "8bit" in optimizer_name(schedule, self._is_paged)
        return whole.adapter, 0 if is_8bit else optimizer_bytes(whole.trained, schedule, self._is_paged)[0]

    @cached_property
    def in_step(self) -> dict[str, int]:
        """Bytes of weights, adapter, gradients, optimizer state, its temporaries, and layers that FSDP gathers."""
        optimizer, working = optimizer_bytes(self.trained, self.settings.schedule, self._is_paged)
        weights, adapter, gradients, gathered = self.loaded.weights, self.loaded.adapter, bytes_of(self.trained), 0
        if self.strategy == "ddp":  # the buckets that are sent
            gradients *= 2
        elif self.strategy == "experts":  # what every process trains is summed in one piece
            gradients += bytes_of(one for one in self.trained if not one.num_experts)
        elif self.strategy:
            gathered = 2 * weights // max(len(self.base.layer_kinds), 1)
            # What is trained is held, and gets its gradients, in float32.
            number = self.parallel.processes
            weights, adapter = (weights + self._widened(False)) // number, (adapter + self._widened(True)) // number
            gradients = round(sum(4 * one.numel for one in self.trained)) // number
            optimizer //= number
        return {"weights": weights, "adapter": adapter, "gradients": gradients, "optimizer": optimizer,
                "working": working, "gathered": gathered}  # fmt: skip

    def _widened(self, is_added: bool) -> int:
        """Bytes that float32 takes of the model's own trained weights, or the adapter's, beyond their own format."""
        trained = (one for one in self.trained if one.is_added == is_added)
        return round(sum(max(4 - one.itemsize, 0) * one.numel for one in trained))

    @property
    def least(self) -> int:
        """What a step takes without any activations."""
        return sum(self.in_step[name] for name in ("weights", "adapter", "gradients", "optimizer"))

    def estimate(self, instead: Trace | None) -> MemoryEstimate:
        """All of it; activations are those of `instead`, where that is given."""
        step = instead or self.estimator.traced(self.method, "dpo" if self.method == "dpo" else "sft")
        evaluation = instead or self.estimator.traced(self.method, "evaluation")
        held, libraries = self.in_step, round(_LIBRARIES[self.settings.device])
        # A part of the experts is read with plain reads.
        is_mapped = self.is_cpu and self.experts_among == 1
        mapped, while_loading = self.base.mapped(self.dtype, self.method == "qlora") if is_mapped else (0, 0)
        activations, fragmentation = self._activations(step)
        exchange = self._exchange(self.estimator.batch.rows * self.estimator.batch.tokens, is_step=True)
        largest = self.base.largest_part(self.experts_among) * self.dtype.itemsize
        loaded = libraries + self.loaded.weights
        whole = loaded + self.loaded.adapter + mapped
        training = libraries + held["weights"] + held["adapter"] + held["optimizer"] + mapped
        kept_small = round(evaluation.small * _FRAGMENTATION) if self.is_cpu else 0
        checking = round(min(fragmentation, activations * _MAX_FRAGMENTATION)) if self.is_cpu else 0
        evaluated = evaluation.peak + self._exchange(self.estimator.batch.eval_rows * self.estimator.batch.eval_tokens)
        phases: dict[Phase, int] = {
            "loading": loaded + while_loading + largest * (2 if self.method == "qlora" else 1),
            "evaluation": whole + evaluated + kept_small,
            "step": training + fragmentation + exchange
            + max(activations + held["gathered"] + held["gradients"], held["gradients"] + held["working"]),
            "checking": loaded + while_loading + checking + evaluated,
        }  # fmt: skip
        if self.method == "full":
            phases["saving"] = training + held["gradients"] + fragmentation
        if self.strategy == "fsdp2":
            phases["sharing out"] = whole + held["weights"] + held["adapter"]
            # Every process has all weights again, and still its part.
            phases["saving"] = whole + held["weights"] + held["adapter"] + held["optimizer"] + fragmentation
        whole_adapter, whole_state = self.put_together
        if self.strategy == "experts" and self.is_cpu:
            phases["saving"] = training + fragmentation + whole_adapter + whole_state
        parts = {
            "weights": held["weights"],
            "adapter": held["adapter"],
            "gradients": held["gradients"],
            "optimizer": held["optimizer"],
            "activations": activations + held["gathered"],
            "exchange": exchange,
            "largest": max(step.largest, held["working"]),
            "files": mapped,
            "libraries": libraries,
            "gaps": fragmentation,
        }
        while_loaded: tuple[Phase, ...] = ("loading", "checking")
        pages = {phase: while_loading if phase in while_loaded else mapped for phase in phases}
        host = 0 if self.is_cpu else round(_HOST_LIBRARIES) + 2 * largest + whole_adapter
        return MemoryEstimate(
            method=self.method,
            num_trained=round(sum(one.numel for one in self._trained_by_all)),
            parts=parts,
            phases=phases,
            mapped=pages,
            host=host,
            host_of_first=0 if self.is_cpu else whole_state,
            batch=self.estimator.batch,
            parallel=self.parallel,
            is_traced=instead is None,
        )

    @property
    def _trained_by_all(self) -> tuple[Held, ...]:
        return self.trained if self.method == "esft" else self.estimator.counted(self.method).trained

    def _exchange(self, num_tokens: int, is_step: bool = False) -> int:
        """The rows that travel to other processes' experts and back, K for each token."""
        if self.strategy != "experts":
            return 0
        config = self.base.model.config.get_text_config()
        rows = num_tokens * self.base.num_chosen * _IMBALANCE
        if is_step and not self.settings.schedule.gradient_checkpointing:  # every layer keeps its rows
            rows *= int(config.num_hidden_layers)
        return 2 * rows * int(config.hidden_size) * self.dtype.itemsize

    def _activations(self, step: Trace) -> tuple[int, int]:
        """(what a step makes beside gradients, what the allocator keeps beyond what is in use)."""
        # The trace holds the gradients of its own trained tensors, all of them at its end.
        activations = max(step.peak - step.gradients, 0)
        if not self.is_cpu:
            return activations, round(_CACHED * activations)
        is_checkpointed = self.settings.schedule.gradient_checkpointing
        of_small = _FRAGMENTATION_CHECKPOINTED if is_checkpointed else _FRAGMENTATION
        most = _MAX_FRAGMENTATION * (2 if self.dtype.itemsize < 4 else 1)  # products in 16 bits pack their operands
        small = max(step.small - step.small_gradients, 0)
        return activations, round(min(small * of_small, activations * most))
