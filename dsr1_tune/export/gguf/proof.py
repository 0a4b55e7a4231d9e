"""The proof that a converted file is the model: its outputs in llama.cpp against transformers', before it is handed on.

llama.cpp takes a family's usual settings for granted, and the converter leaves some out, so that a file may load, speak
and still be another model. Both sides read the same weights; what remains is rounding, and what that does to this model
is measured beside it.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.export.gguf.source import OTHERS, architecture_of
from dsr1_tune.export.weights.load_streamed import largest_unit, load_streamed
from dsr1_tune.export.weights.source import Source
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import Located, free_room
from dsr1_tune.models.memory import GIB, give_back
from dsr1_tune.models.meta import layer_stack
from dsr1_tune.runs.console import Narrator

NUM_TOKENS = 256
_TRIMMED = 0.1
"""Of tokens, the share that is farthest off and left out: where two experts score alike, rounding picks another one."""
_LEAST, _TIMES = 2e-4, 20.0
"""A right file may be this far off in any case, and so many times as far as rounding puts transformers off itself."""


@dataclass(frozen=True)
class Outputs:
    """How far llama.cpp's next-token distributions are from transformers', in nats of KL divergence."""

    kl: float
    rounding_kl: float
    """How far transformers' own move where the input of every linear layer is rounded to 16 bits, as llama.cpp does."""
    num_tokens: int

    @property
    def bound(self) -> float:
        """How far those of a right file may be."""
        return max(_LEAST, _TIMES * self.rounding_kl)

    @property
    def are_the_models(self) -> bool:
        """Whether the file computes the model."""
        return self.kl <= self.bound  # not so for NaN


def check(source: Source, file: Path, kind: str, text: str, narrator: Narrator) -> dict[str, Any]:
    """Hold the 16-bit `file` against its source on tokens of `text`; what is to be said of it in lineage.json.

    Raises ModelError if it computes another model.
    """
    need, free = 2 * 4 * largest_unit(source.meta_model), free_room()
    if need > free:  # llama.cpp needs less: it maps the file
        why = f"a layer in float32 takes {need / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB are free"
        narrator.say(f"That llama.cpp computes what transformers does was not proved: {why}")
        return {"outputs": {"proved": False, "why": why}}
    narrator.say("Comparing what llama.cpp computes of it with transformers")
    found = compare(source, file, kind, text)
    if not found.are_the_models:
        raise ModelError(
            f"{source.name}: converts, but llama.cpp computes another {architecture_of(source)} than transformers: KL "
            f"{found.kl:.2g} nats on {found.num_tokens} tokens, where rounding explains {found.bound:.2g}",
            hint=f"the converter or llama.cpp passes over a setting of its config.json; {OTHERS}",
        )
    narrator.say(f"In 16 bits it computes what transformers does (KL {found.kl:.1e}, bound {found.bound:.1e})")
    return {"outputs": {"proved": True, **asdict(found), "bound": found.bound}}


def compare(source: Source, file: Path, kind: str, text: str) -> Outputs:
    """Both sides' outputs on tokens of `text`, which is repeated if it is short; one side in memory at a time.

    `kind` is what the file's matrices are in: bf16 or f16.
    """
    tokenizer = ModelFolder(source.folder, source.name).read_tokenizer()
    context = int(getattr(source.meta_model.config, "max_position_embeddings", None) or NUM_TOKENS)
    num_tokens = min(NUM_TOKENS, context)
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids = (ids * (num_tokens // len(ids) + 1))[:num_tokens]
    exact_TV, rounded_TV = _of_transformers(source, kind, tokenizer, ids)
    gc.collect()
    give_back()
    with LlamaCpp(file, context=num_tokens) as engine:
        theirs_TV = engine.logprobs(ids)
    return Outputs(_divergence(exact_TV, theirs_TV), _divergence(exact_TV, rounded_TV), num_tokens)


def _divergence(one_TV: Tensor, other_TV: Tensor) -> float:
    """Mean KL of the tokens that are not trimmed; the vocabulary may be padded in one of the two."""
    num_vocab = min(one_TV.shape[-1], other_TV.shape[-1])
    one, other = one_TV[:, :num_vocab].log_softmax(-1), other_TV[:, :num_vocab].log_softmax(-1)
    kl_T = (one.exp() * (one - other)).sum(-1)
    # NaN sorts behind all numbers, and must not be trimmed.
    kept = kl_T.sort().values[: math.ceil(len(kl_T) * (1 - _TRIMMED))]
    return float(kept.mean()) if kl_T.isfinite().all() else math.nan


def _of_transformers(source: Source, kind: str, tokenizer: Any, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Logits (T, V), layer by layer: of the weights that the file holds, and with rounded states."""
    located = Located(source.folder, source.name, None, tokenizer, source.meta_model.config)
    model = load_streamed(located, _as_converted(source, kind), source.layout).model
    stack = layer_stack(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_round_second)
    for layer in model.get_submodule(stack):
        layer.register_forward_pre_hook(_round_second)
    with torch.inference_mode():
        logits_BTV = (
            model(input_ids=torch.tensor([ids, ids], device=model.device), use_cache=False).logits.float().cpu()
        )
    return logits_BTV[0], logits_BTV[1]


def _round_second(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Of a batch of two equal rows, round the second one's states (2, T, D)."""
    states = arguments[0] if arguments else None
    if not isinstance(states, Tensor) or states.dim() != 3 or len(states) != 2:
        return None
    rounded = states[1].to(torch.bfloat16).to(states.dtype)
    return (torch.stack((states[0], rounded)), *arguments[1:])


def _as_converted(source: Source, kind: str) -> Callable[[str], Tensor]:
    """The stored tensors with matrices rounded to 16 bits, as the converter does; it keeps routers and vectors."""
    dtype = torch.float16 if kind == "f16" else torch.bfloat16

    def read(name: str) -> Tensor:
        tensor = source.weights.read(name)
        is_kept = tensor.dim() < 2 or source.layout.part(name) == "router"
        return tensor if is_kept else tensor.to(dtype)

    return read
