"""Will it fit? Bytes for every way of training, from a base's config alone, before anything is downloaded or loaded.

Weights, adapter, gradients and optimizer state are counted on the meta model that would be trained; what a step keeps
and throws away is traced (see `trace`); what libraries take, and memory that is freed but not given back, is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dsr1_tune.config import Adapter, Esft, Parallel, Router, Schedule, Train
from dsr1_tune.models.load import pick_dtype
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan.base import PlannedBase, dtype_named
from dsr1_tune.models.memory_plan.trace import SMALL, Step, Trace, trace
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_rows import PORTION_BYTES
from dsr1_tune.moe.quantized_experts import finish_nf4, reserve_nf4
from dsr1_tune.moe.routing import open_routers
from dsr1_tune.quant.nf4 import scale_map

Method = Literal["lora", "qlora", "full", "esft", "dpo"]
METHODS: tuple[Method, ...] = get_args(Method)
Trained = tuple[tuple[tuple[int, ...], int], ...]
Phase = Literal["loading", "step", "evaluation", "saving", "checking"]

# Measured with benchmarks/plan.py.
_LIBRARIES = {"cpu": 0.56 * GIB, "cuda": 0.6 * GIB}
"""torch, transformers, TRL and the rest in memory; on a GPU its context and the kernels."""
_FRAGMENTATION, _FRAGMENTATION_CHECKPOINTED, _MAX_FRAGMENTATION = 0.8, 4.5, 1.15
"""On a CPU, freed memory that the allocator keeps: a share of the most that small blocks take (as it is, and with
gradient checkpointing), and at most this share of all that a step makes."""
_CACHED = 0.08
"""On a GPU, what torch's allocator holds beyond what is in use, as a share of activations."""


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
    """weights, adapter, gradients, optimizer, activations, largest (temporary), files (mapped), libraries, gaps (what
    allocator fragmentation takes)."""
    phases: Mapping[Phase, int]
    batch: Batch
    remark: str = ""

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
        """The peak less the pages of mapped files, which the system takes back when memory is short."""
        return max(size - self.parts["files"] for size in self.phases.values())

    @property
    def fixed(self) -> int:
        """What no smaller batch makes smaller."""
        return sum(self.parts[name] for name in ("weights", "adapter", "gradients", "optimizer", "libraries"))


@dataclass(frozen=True)
class Plan:
    """Estimates for the ways of training, what there is, and what to turn where it is not enough."""

    base: PlannedBase
    memory: int
    estimates: tuple[MemoryEstimate, ...]
    advice: Mapping[Method, str] = field(default_factory=dict)

    def fits(self, method: Method) -> bool:
        """Whether a way of training fits in the memory."""
        return self.of(method).needed <= self.memory

    def of(self, method: Method) -> MemoryEstimate:
        """The estimate for one of them."""
        return next(one for one in self.estimates if one.method == method)

    @property
    def choice(self) -> Method | None:
        """The first that fits of lora, qlora: adapters first, in 16 or 32 bits where there is room."""
        fitting = {one.method for one in self.estimates if self.fits(one.method)}
        return "lora" if "lora" in fitting else "qlora" if "qlora" in fitting else None


def plan(
    base: PlannedBase, settings: Settings, batch: Batch, memory: int, methods: tuple[Method, ...] = METHODS
) -> Plan:
    """What each of `methods` takes on `base`, and what to turn where that is more than `memory` bytes a process."""
    possible = [method for method in methods if method != "esft" or find_experts(base.model)]
    made = Plan(base, memory, tuple(estimate(base, method, settings, batch) for method in possible))
    advice = {one.method: _advise(one, made, settings) for one in made.estimates if not made.fits(one.method)}
    return replace(made, advice=advice)


def estimate(base: PlannedBase, method: Method, settings: Settings, batch: Batch) -> MemoryEstimate:
    """What one way of training takes."""
    dtype = _dtype(base, method, settings)
    prepare = _prepare(method, settings)
    config = base.model.config
    with torch.device("meta"):
        own = _Counted.of(prepare(meta_model(config).to(dtype)))
    trained = _trained_by_esft(base, settings) if method == "esft" else own.trained
    optimizer, working = _optimizer(trained, method, settings)
    step: Step = "dpo" if method == "dpo" else "sft"
    checkpointed = settings.schedule.gradient_checkpointing
    scale_map(torch.device("cpu"))  # it is kept for good, and so must not be made of imagined numbers
    stepped = trace(config, prepare, dtype, batch.rows, batch.tokens, step, checkpointed)
    bare = _in_nf4 if method == "qlora" else lambda model: model
    measured = trace(config, bare, dtype, batch.eval_rows, batch.eval_tokens, "evaluation")
    costs = _Costs(base, method, settings, dtype, own, trained, optimizer, working, stepped, measured)
    num_trained = sum(math.prod(shape) for shape, _ in trained)
    return MemoryEstimate(method, num_trained, *costs.in_phases(), batch)


def _dtype(base: PlannedBase, method: Method, settings: Settings) -> torch.dtype:
    device = torch.device(settings.device) if settings.device == "cpu" or torch.cuda.is_available() else None
    if device is None:  # a GPU that is not here: one that computes in bfloat16
        return dtype_named("bfloat16" if settings.dtype == "auto" else settings.dtype)
    return pick_dtype(settings.dtype, device, quantized=method == "qlora")


def _prepare(method: Method, settings: Settings) -> Callable[[Any], Any]:
    """What makes a meta model into the model that is trained."""

    def prepare(model: Any) -> Any:
        if method == "full":
            enable_full_training(model, settings.train.only)
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
class _Counted:
    """The bytes of a model's own tensors, and what of them is trained."""

    weights: int
    adapter: int
    trained: Trained
    """Shape and bytes a number of every trained tensor."""

    @classmethod
    def of(cls, model: nn.Module) -> _Counted:
        weights = adapter = 0
        trained = []
        seen: dict[int, Tensor] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if id(tensor) in seen:
                continue
            seen[id(tensor)] = tensor
            is_placeholder = tensor.numel() > 1 and all(stride == 0 for stride in tensor.stride())
            size = tensor.element_size() * (1 if is_placeholder else tensor.numel())
            is_added = ".lora_" in name or ".modules_to_save." in name
            weights, adapter = weights + size * (not is_added), adapter + size * is_added
            if tensor.requires_grad:
                trained.append((tuple(tensor.shape), tensor.element_size()))
        return cls(weights, adapter, tuple(trained))


def _trained_by_esft(base: PlannedBase, settings: Settings) -> Trained:
    """The chosen experts: at most the share of them whose share of the gate weight is asked for."""
    size = _dtype(base, "esft", settings).itemsize
    trained: list[tuple[tuple[int, ...], int]] = []
    for block in find_experts(base.model):
        chosen = math.ceil(settings.esft.share * block.num_experts)
        for name in block.parameters:
            shape = getattr(block.module, name).shape
            rows = (settings.adapter.rank, shape[1] + shape[2])
            trained += [(tuple(shape[1:]) if settings.esft.method == "weights" else rows, size)] * chosen
    return tuple(trained)


def _optimizer(trained: Trained, method: Method, settings: Settings) -> tuple[int, int]:
    """(bytes of state, of temporaries) of the optimizer, as runs.optimizers builds it."""
    name = settings.schedule.optimizer
    if name == "auto":
        name = "paged_adamw_8bit" if method == "qlora" and settings.device == "cuda" else "adamw"
    numels = [math.prod(shape) for shape, _ in trained]
    largest = max(numels, default=0)
    if name == "adafactor":  # rows and columns in place of a second moment; an update at a time
        return sum(4 * _factored(shape) for shape, _ in trained), 8 * largest
    if "8bit" in name:
        return sum(round(numel * (2.03 if numel >= 4096 else 8)) for numel in numels), 0
    is_narrow = any(size < 4 for _, size in trained)
    return 8 * sum(numels), 20 * min(largest, 2**24) if is_narrow else 0


def _factored(shape: tuple[int, ...]) -> int:
    """Numbers of Adafactor's second moment: those of its rows and of its columns."""
    numel = math.prod(shape)
    return numel // shape[-1] + numel // shape[-2] if len(shape) > 1 else numel


@dataclass(frozen=True)
class _Costs:
    """What was counted and traced of one way of training, and what each phase of a run takes by it."""

    base: PlannedBase
    method: Method
    settings: Settings
    dtype: torch.dtype
    own: _Counted
    trained: Trained
    optimizer: int
    """Bytes of the optimizer's state."""
    working: int
    """Bytes of its temporaries."""
    step: Trace
    evaluation: Trace

    def in_phases(self) -> tuple[dict[str, int], dict[Phase, int]]:
        """(the parts that take memory in a step, the sum of all that is there in each phase)."""
        is_cpu = self.settings.device == "cpu"
        weights, gradients, optimizer, buckets, gathered = self._of_each_process()
        mapped, while_loading = _mapped(self.base, self.method, self.dtype) if is_cpu else (0, 0)
        activations, fragmentation = self._activations(gathered)
        libraries = round(_LIBRARIES[self.settings.device])
        held = libraries + weights + self.own.adapter + mapped
        largest = self.base.largest * self.dtype.itemsize
        evaluated = self.evaluation.peak
        checking = round(min(fragmentation, activations * _MAX_FRAGMENTATION)) if is_cpu else 0
        phases: dict[Phase, int] = {
            "loading": libraries + weights + while_loading + largest * (2 if self.method == "qlora" else 1),
            "evaluation": held + evaluated + (round(self.evaluation.small * _FRAGMENTATION) if is_cpu else 0),
            "step": held + optimizer + fragmentation + buckets
            + max(activations + gradients, gradients + self.working),
            "checking": libraries + weights + while_loading + checking + evaluated,
        }  # fmt: skip
        if self.method == "full":
            phases["saving"] = held + optimizer + gradients + fragmentation
        parts = {
            "weights": weights,
            "adapter": self.own.adapter,
            "gradients": gradients + buckets,
            "optimizer": optimizer,
            "activations": activations,
            "largest": max(self.step.largest, self.working),
            "files": mapped,
            "libraries": libraries,
            "gaps": fragmentation,
        }
        return parts, phases

    def _of_each_process(self) -> tuple[int, int, int, int, int]:
        """(weights, gradients, optimizer state, DDP's buckets, layers that FSDP gathers) of one of the processes."""
        weights, gradients = self.own.weights, _bytes_of(self.trained)
        number = self.settings.parallel.processes
        if number == 1:
            return weights, gradients, self.optimizer, 0, 0
        if self.settings.parallel.strategy == "ddp":
            return weights, gradients, self.optimizer, gradients, 0
        layer = weights // max(self.base.config.num_hidden_layers, 1)
        return weights // number, gradients // number, self.optimizer // number, 0, 2 * layer

    def _activations(self, gathered: int) -> tuple[int, int]:
        """(what a step makes beside gradients, what the allocator keeps beyond what is in use)."""
        # The trace holds the gradients of its own trained tensors, all of them at its end.
        small_gradients = sum(size for one in self.own.trained if (size := _bytes_of([one])) < SMALL)
        activations = max(self.step.peak - _bytes_of(self.own.trained), 0) + gathered
        if self.settings.device != "cpu":
            dequantized = min(PORTION_BYTES, self.base.largest * self.dtype.itemsize) if self.method == "qlora" else 0
            return activations + dequantized, round(_CACHED * activations)
        is_checkpointed = self.settings.schedule.gradient_checkpointing
        of_small = _FRAGMENTATION_CHECKPOINTED if is_checkpointed else _FRAGMENTATION
        most = _MAX_FRAGMENTATION * (2 if self.dtype.itemsize < 4 else 1)  # products in 16 bits pack their operands
        return activations, round(min(max(self.step.small - small_gradients, 0) * of_small, activations * most))


def _bytes_of(trained: Iterable[tuple[tuple[int, ...], int]]) -> int:
    """Of tensors given as (shape, bytes a number)."""
    return sum(math.prod(shape) * size for shape, size in trained)


def _mapped(base: PlannedBase, method: Method, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of the files that stay mapped once a model is loaded, and while it is.

    A tensor that is taken as it is stored is its pages; one that is cast, quantized or put together is a copy of them,
    and the pages stay as long as any tensor of the file is taken as it is.
    """
    if base.is_read_through:
        return 0, 0
    is_as_stored = dtype_named(base.stored) == dtype and base.stored != "block-FP8"
    # transformers keeps some tensors, such as DeepSeek-V3's balancing bias, in float32 whatever the others become.
    is_partly = base.stored == "float32" and base.keeps_float32
    if method == "qlora" or not is_as_stored:
        whole = base.stored_bytes
        return (whole if is_as_stored or is_partly else 0), whole
    copied = round(base.stored_bytes * base.num_fused / max(base.num_parameters, 1))
    return copied, copied


def _advise(one: MemoryEstimate, made: Plan, settings: Settings) -> str:
    """The setting to turn for a way of training that does not fit."""
    room = made.memory - one.fixed
    by_batch = one.needed - one.fixed
    if room <= 0 or by_batch <= 0:
        return _other_method(one, made, settings)
    if not settings.schedule.gradient_checkpointing:
        return "schedule.gradient_checkpointing=true"
    share = room / by_batch
    if (rows := math.floor(one.batch.rows * share)) >= 1:
        accumulate = settings.schedule.gradient_accumulation_steps * math.ceil(one.batch.rows / rows)
        return f"schedule.batch_size={rows} schedule.gradient_accumulation_steps={accumulate}"
    tokens = math.floor(one.batch.tokens * one.batch.rows * share / 64) * 64
    shorter = f"schedule.batch_size=1 schedule.max_tokens={tokens} or " if tokens >= 64 else ""
    return shorter + _other_method(one, made, settings)


def _other_method(one: MemoryEstimate, made: Plan, settings: Settings) -> str:
    """Where a smaller batch does not help."""
    is_in_32_bits = one.method in ("full", "esft") and settings.schedule.optimizer in ("auto", "adamw")
    if is_in_32_bits and one.fixed - one.parts["optimizer"] * 3 // 4 < made.memory:
        return "schedule.optimizer=adamw_8bit"
    if one.method != "qlora" and any(o.method == "qlora" and o.fixed < made.memory for o in made.estimates):
        return "qlora"
    if one.method in ("full", "lora", "dpo") and settings.parallel.strategy == "ddp":
        number = math.ceil(one.fixed / max(made.memory * 0.8, 1))
        if number > 1:
            return f"{number} GPUs or more with parallel.strategy=fsdp2"
    return "a smaller base, or a machine with more memory"
