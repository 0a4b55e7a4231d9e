"""The proof that a quantized folder computes with what was written: its logits and its weights' multiplied out.

bitsandbytes' layout is read by this package's own loader, which knows by `Layout` where each stored tensor belongs.
Here the same tensors are multiplied out by bitsandbytes and handed to transformers under the names that they have on
disk, so that the model is put together by transformers alone.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.outputs import logits_of
from dsr1_tune.export.weights.progress import num_elements
from dsr1_tune.export.weights.source import Source
from dsr1_tune.models.load import free_room, load_located, load_tensors, locate
from dsr1_tune.models.weights.bnb_layout import Kind
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec
from dsr1_tune.models.weights.converted import LazyTensor, open_bitsandbytes
from dsr1_tune.models.weights.layout import Piece
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.llama4 import compute_by

_TOKENS = 64
_SHARE = 0.05
"""Tokens that may differ: where two experts score all but alike, the order of additions decides."""
_TOLERANCE = 0.01
"""Of the largest logit: a hundred times what the order of additions makes of it, a hundredth of what a wrong place
for a weight does."""


def check_as_loaded(source: Source, folder: Path, kind: Kind) -> dict[str, Any]:
    """Hold the logits of the model in `folder` against those of its weights multiplied out; what was found.

    Of a model that is too large for the memory in float32 no logits are compared, and None stands for the difference.
    Raises ModelError where they are not the same.
    """
    if num_elements(source.weights) * 4 * 1.5 > free_room():
        return {"num_tokens": 0, "max_difference": None}
    located = locate(Base(model=str(folder), dtype="float32"), is_loaded=False)
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(len(located.tokenizer), int(located.config.vocab_size))
    rows = [torch.randint(0, vocabulary, (_TOKENS,), generator=generator).tolist()]

    def logits(model: Any) -> Tensor:
        return logits_of(model, rows, 0)[0]

    plain = load_tensors(located, _multiplied_out(source, folder, kind))
    if find_experts(plain):
        compute_by(plain, "eager")  # the grouped one refuses widths that 16 bytes do not divide
    want_TV = logits(plain)
    del plain
    gc.collect()
    got_TV = logits(load_located(located, "float32").model)
    return check_logits(want_TV, got_TV, source.name)


def _multiplied_out(source: Source, folder: Path, kind: Kind) -> Mapping[str, LazyTensor]:
    """The tensors of the folder under the names that the source has on disk, in the order that they have there."""
    stored = {name: source.weights.spec(name).shape for name in source.layout.pieces}
    tensors = open_bitsandbytes(Checkpoint(folder), kind, {**source.layout.shapes, **stored})
    for name, piece in source.layout.pieces.items():
        if name not in tensors:
            whole = tensors[piece.parameter]
            spec = Spec(whole.spec.dtype, stored[name])
            tensors[name] = LazyTensor(spec, partial(_part_of, whole, piece))
    return {name: tensor for name, tensor in tensors.items() if name in stored or name not in source.layout.shapes}


def _part_of(whole: LazyTensor, piece: Piece) -> Tensor:
    return piece.of(whole.make()).contiguous()


def check_logits(want_TV: Tensor, got_TV: Tensor, name: str) -> dict[str, Any]:
    """What is said of the two. Raises ModelError where they are not the same, or are no numbers."""
    differences_T = (want_TV - got_TV).abs().amax(-1)
    bound = _TOLERANCE * float(want_TV.abs().max())
    num_beyond = int((~(differences_T <= bound)).sum())
    if num_beyond > _SHARE * len(differences_T):
        raise ModelError(
            f"{name}: as it is loaded the quantized model is another than its weights multiplied out: its logits "
            f"differ by up to {float(differences_T.max()):.3g}, in {num_beyond} of {len(differences_T)} tokens by more "
            f"than {bound:.3g}",
            hint="choose another format, such as --to gguf, and please report it with the model's name",
        )
    return {"num_tokens": len(differences_T), "max_difference": float(differences_T.max()), "bound": bound}
