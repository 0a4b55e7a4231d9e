"""What a training step holds in memory, from a model without weights: the real code runs, on tensors that are none.

The model of a config gets its adapter, and a step of it (forward, loss, backward) is run under torch's FakeTensorMode:
every operator says which tensors it makes, none of them takes memory, and their sizes are added up while they live. So
whatever a family's layers, an adapter or a loss keep is counted as it is, and not by a formula that grows stale.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsr1_tune.errors import ModelError
from dsr1_tune.models.head import logits_in_pieces
from dsr1_tune.models.meta import imagine, meta_model

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


@dataclass(frozen=True)
class Trace:
    """Bytes that a step holds at its worst moment, beside the model itself."""

    peak: int
    """All of it: activations, gradients so far, temporaries."""
    small: int
    """The most that blocks of less than SMALL bytes take together."""
    largest: int
    """The largest single tensor."""

    def beyond(self, other: Trace, times: float) -> Trace:
        """This trace, and `times` what it is more than a trace of fewer layers."""
        return Trace(
            round(self.peak + times * (self.peak - other.peak)),
            round(self.small + times * (self.small - other.small)),
            max(self.largest, other.largest),
        )


def trace(
    config: Any,
    prepare: Prepare,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    step: Step = "sft",
    is_checkpointed: bool = False,
) -> Trace:
    """A step over `rows` sequences of `tokens` each, for `dpo` pairs of them.

    `prepare` makes the meta model of a config into the model that is trained: freezes, quantizes, adds an adapter. A
    few layers are traced and the others taken to be like them.
    """
    num_layers = int(config.num_hidden_layers)
    few = int(getattr(config, "first_k_dense_replace", 0) or 0) + 2
    if num_layers <= max(few + 2, MAX_TRACED_LAYERS):
        return _trace(config, prepare, dtype, rows, tokens, step, is_checkpointed)
    fewer = _trace(_with_layers(config, few), prepare, dtype, rows, tokens, step, is_checkpointed)
    more = _trace(_with_layers(config, few + 2), prepare, dtype, rows, tokens, step, is_checkpointed)
    return more.beyond(fewer, (num_layers - few - 2) / 2)


def _with_layers(config: Any, number: int) -> Any:
    """The config of the same model with its first layers only; what it lists for each layer is cut too."""
    before, short = config.num_hidden_layers, deepcopy(config)
    for name, value in vars(short).items():
        if isinstance(value, list) and len(value) == before and name not in ("architectures",):
            setattr(short, name, value[:number])
    short.num_hidden_layers = number
    return short


def _trace(
    config: Any, prepare: Prepare, dtype: torch.dtype, rows: int, tokens: int, step: Step, is_checkpointed: bool
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
    with FakeTensorMode(allow_non_fake_inputs=True):
        imagine(model)
        ids_BT = torch.zeros(rows * (2 if step == "dpo" else 1), tokens, dtype=torch.long)
        with (
            _Alive(model, config.get_text_config().vocab_size) as alive,
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            try:
                _STEPS[step](model, ids_BT)
            except (DynamicOutputShapeException, DataDependentOutputException) as error:
                raise ModelError(
                    f"{config.model_type}: what it takes cannot be planned: its layers ask for numbers, which are only "
                    f"imagined here ({type(error).__name__})",
                    hint="train it without a plan, as with dsr1-tune lora",
                ) from error
    return Trace(alive.peak, alive.small_peak, alive.largest)


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
        kwargs = kwargs or {}
        out = _grouped(*args, **kwargs) if func is _GROUPED else func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
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
