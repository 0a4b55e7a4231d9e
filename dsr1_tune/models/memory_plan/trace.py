"""What a training step holds in memory, from a model without weights: the real code runs, on tensors that are none.

The model of a config gets its adapter, and a step of it (forward, loss, backward) is run under torch's FakeTensorMode:
every operator says which tensors it makes, none of them takes memory, and their sizes are added up while they live. So
whatever a family's layers, an adapter or a loss keep is counted as it is, and not by a formula that grows stale.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dsr1_tune.errors import ModelError
from dsr1_tune.models.head import logits_in_pieces
from dsr1_tune.models.memory_plan.layers import alike_at_first, few_and_more, layer_kinds, with_layers
from dsr1_tune.models.meta import imagine, meta_model
from dsr1_tune.models.trained.own_precision import OwnPrecision
from dsr1_tune.moe.expert_rows import IMAGINED_ON_GPU

Step = Literal["sft", "dpo", "evaluation"]
Prepare = Callable[[Any], Any]

MAX_TRACED_LAYERS = 4
SMALL = 2**25
"""The C library keeps smaller blocks when they are freed, and later ones do not always fit (fragmentation)."""
# What TRL's trainers ask for beside the loss, for their logs.
_OUTPUTS: dict[Step, tuple[str, ...]] = {
    "sft": ("log_probs", "entropy", "is_top1"),
    "dpo": ("log_probs", "entropy", "mean_logits", "is_top1"),
    "evaluation": ("log_probs",),
}
_GROUPED = torch.ops.aten._grouped_mm.default
_DEVICE = torch.ops.prim.device.default


@dataclass(frozen=True)
class Trace:
    """Bytes that a step holds at its worst moment, beside the model itself."""

    peak: int
    """All of it: activations, gradients so far, temporaries."""
    small: int
    """The most that blocks of less than SMALL bytes take together."""
    largest: int
    """The largest single tensor."""
    gradients: int = 0
    """Of all that is trained; they are a part of the peak if it is at the end."""
    small_gradients: int = 0
    """Of those, what blocks of less than SMALL bytes take."""

    def beyond(self, other: Trace, times: float) -> Trace:
        """This trace, and `times` what it is more than a trace of fewer layers."""
        return Trace(
            round(self.peak + times * (self.peak - other.peak)),
            round(self.small + times * (self.small - other.small)),
            max(self.largest, other.largest),
            round(self.gradients + times * (self.gradients - other.gradients)),
            round(self.small_gradients + times * (self.small_gradients - other.small_gradients)),
        )


def trace(
    config: Any,
    prepare: Prepare,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    step: Step = "sft",
    is_checkpointed: bool = False,
    is_on_gpu: bool = False,
    kinds: Sequence[Hashable] | None = None,
) -> Trace:
    """A step over `rows` sequences of `tokens` each, for `dpo` pairs of them.

    `prepare` makes the meta model of a config into the model that is trained: freezes, quantizes, adds an adapter. A
    few layers are traced and the others taken to be like them; `kinds` says what each is, where that is known. What
    is imagined `is_on_gpu` computes as there: attention by a fused kernel, experts by grouped products.
    """
    traced = (prepare, dtype, rows, tokens, step, is_checkpointed, is_on_gpu)
    num_layers = int(config.num_hidden_layers)
    if num_layers <= MAX_TRACED_LAYERS:
        return _trace(config, *traced)
    kinds = kinds or layer_kinds(meta_model(config))
    left_out = alike_at_first(config, kinds)
    few, more = few_and_more(kinds[left_out:])
    if more + left_out >= num_layers:
        return _trace(config, *traced)
    most = _trace(with_layers(config, more, left_out), *traced)
    return most.beyond(_trace(with_layers(config, few, left_out), *traced), (num_layers - more) / (more - few))


def _trace(
    config: Any,
    prepare: Prepare,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    step: Step,
    is_checkpointed: bool,
    is_on_gpu: bool,
) -> Trace:
    from trl.trainer.utils import add_fused_lm_head

    model = meta_model(config).to(dtype)
    model.config.use_cache = False
    with torch.device("meta"):  # an adapter's A and B too
        model = prepare(model).train()
    if is_checkpointed and step != "evaluation":
        model.activation_checkpointing_enable()
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    add_fused_lm_head(bare, outputs=_OUTPUTS[step])
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        imagine(model)
        ids_BT = torch.zeros(rows * (2 if step == "dpo" else 1), tokens, dtype=torch.long)
        alive = stack.enter_context(_Alive(model, config.get_text_config().vocab_size))
        if dtype != torch.float32 and step != "evaluation":
            stack.enter_context(torch.autocast("cpu", dtype))
            OwnPrecision(model, dtype)
        if is_on_gpu:
            stack.enter_context(_as_on_gpu())
        try:
            _STEPS[step](model, ids_BT)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise ModelError(
                f"{config.model_type}: what it takes cannot be planned: its layers ask for numbers, which are only "
                f"imagined here ({type(error).__name__})",
                hint="train it without a plan, as with dsr1-tune lora",
            ) from error
    gradients = [one.numel() * one.element_size() for one in model.parameters() if one.requires_grad]
    small = sum(size for size in gradients if size < SMALL)
    return Trace(alive.peak, alive.small_peak, alive.largest, sum(gradients), small)


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """What is imagined on the CPU computes as on a GPU while it lasts.

    Attention keeps what fused kernels keep, where the CPU's own would fall back to plain products; it is put in torch's
    place, as a mode of torch's would not reach what is computed a second time in the backward pass.
    """
    before, attend = IMAGINED_ON_GPU.set(True), functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = attend
        IMAGINED_ON_GPU.reset(before)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **more: Any) -> Any:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if attn_mask is not None:  # the kernels add it to the scores
        attn_mask = attn_mask.to(dtype)
    return _Fused.apply(query.to(dtype), key.to(dtype), value.to(dtype), attn_mask)


class _Fused(torch.autograd.Function):
    """The shapes of memory-efficient attention: it keeps its inputs, its output and a number a query."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSE: Tensor, mask: Tensor | None) -> Tensor:
        out_BHTE = q_BHTD.new_empty(*q_BHTD.shape[:-1], v_BGSE.shape[-1])
        log_sum_BHT = q_BHTD.new_empty(q_BHTD.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q_BHTD, k_BGSD, v_BGSE, mask, out_BHTE, log_sum_BHT)
        return out_BHTE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BGSD, v_BGSE, *_ = ctx.saved_tensors
        summed_BHTD = q_BHTD.new_empty(q_BHTD.shape, dtype=torch.float32)  # the queries' gradient, block by block
        return summed_BHTD.to(q_BHTD.dtype), k_BGSD.new_empty(k_BGSD.shape), v_BGSE.new_empty(v_BGSE.shape), None


def _supervised(model: Any, ids_BT: Tensor) -> None:
    out = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), labels=ids_BT, fused_lm_head=True)
    (-out.log_probs.sum()).backward()


def _preferences(model: Any, ids_BT: Tensor) -> None:
    """DPO (arXiv 2305.18290); the reference has been asked before the first step."""
    inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), "labels": ids_BT, "fused_lm_head": True}
    better, worse = model(**inputs).log_probs.sum(1).chunk(2)
    (-functional.logsigmoid(better - worse).sum()).backward()


def _evaluated(model: Any, ids_BT: Tensor) -> None:
    """As runs.evaluate measures a loss, all tokens taken to be learned."""
    places_N = torch.arange(ids_BT.numel())
    with torch.no_grad():
        inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        for logits_CV in logits_in_pieces(model.eval(), places_N, **inputs):
            wanted_C = torch.zeros(len(logits_CV), dtype=torch.long)
            functional.cross_entropy(logits_CV.float(), wanted_C, reduction="none")


_STEPS: dict[Step, Callable[[Any, Tensor], None]] = {"sft": _supervised, "dpo": _preferences, "evaluation": _evaluated}


class _Alive(TorchDispatchMode):
    """Adds up the storages that operators make for as long as they live; a model's own do not count."""

    def __init__(self, model: nn.Module, vocab_size: int) -> None:
        import trl.trainer.utils

        super().__init__()
        self.peak = self.small_peak = self.largest = 0
        self._now = self._small = 0
        self._sizes: dict[int, int] = {}
        self._own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._vocab_size = vocab_size
        self._chunk = int(getattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:  # asked for of every tensor over and over
            return args[0].fake_device
        kwargs = kwargs or {}
        out = _grouped(*args, **kwargs) if func is _GROUPED else func(*args, **kwargs)
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self._see(one)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._own:
            return
        size = storage.nbytes()
        if tensor.dim() == 2 and tensor.shape[-1] == self._chunk > self._vocab_size:
            # TRL's buffer for a slice of the vocabulary: a small one fills it in part, the rest is never touched.
            size = size * self._vocab_size // self._chunk
        self._sizes[key] = size
        self._now += size
        self._small += size if size < SMALL else 0
        self.peak = max(self.peak, self._now)
        self.small_peak = max(self.small_peak, self._small)
        self.largest = max(self.largest, size)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        size = self._sizes.pop(key)
        self._now -= size
        self._small -= size if size < SMALL else 0


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """The shape of grouped products: torch imagines them in bfloat16 only."""
    if a.dim() == b.dim() == 2 and offs is not None:
        return a.new_empty(offs.shape[0], a.shape[0], b.shape[1])
    return a.new_empty(*a.shape[:-1], b.shape[-1])
