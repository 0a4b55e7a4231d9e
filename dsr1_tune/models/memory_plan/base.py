"""A base as its config.json describes it: no weights, no tokenizer, no download of more than a few small files."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded, hub
from dsr1_tune.models.context import with_context
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.memory_plan.layers import layer_kinds
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import Hub, Missing, ModelRef, local_path
from dsr1_tune.models.weights.index import INDEX
from dsr1_tune.models.weights.stored_format import StoredFormat
from dsr1_tune.moe.anatomy import Anatomy, Part, find_experts
from dsr1_tune.moe.expert_shard import most_held

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "block-FP8": 1.0, "nf4": 0.52}


@dataclass(frozen=True)
class PlannedBase:
    """What there is to know of a base before its weights."""

    name: str
    folder: Path
    config: Any
    stored: str
    """float32, bfloat16, float16, block-FP8 or nf4."""

    @cached_property
    def model(self) -> nn.Module:
        """Its meta model, with no weights."""
        config = self.config
        if getattr(config, "quantization_config", None):
            config = type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})
            # Which attention computes is no part of what is written to a config.json.
            config._attn_implementation = self.config._attn_implementation
        built: nn.Module = meta_model(config)
        return built

    @cached_property
    def sizes(self) -> dict[Part, int]:
        """Its parameters by part."""
        part_of, sizes = Anatomy(self.model), dict[Part, int]()
        for name, weight in self.model.named_parameters():
            sizes[part_of(name)] = sizes.get(part_of(name), 0) + weight.numel()
        return sizes

    @property
    def num_parameters(self) -> int:
        """All of them."""
        return sum(self.sizes.values())

    @cached_property
    def num_fused(self) -> int:
        """Those that transformers puts together out of several stored tensors."""
        return sum(w.numel() for block in find_experts(self.model) for w in block.module.parameters(recurse=False))

    @cached_property
    def largest(self) -> int:
        """The numbers of the largest weight."""
        return self.largest_part(1)

    def largest_part(self, processes: int) -> int:
        """The numbers of the largest weight that one of several processes loads which share experts out."""
        fused = {id(w): w for block in find_experts(self.model) for w in block.module.parameters(recurse=False)}
        weights = {id(weight): weight.numel() for weight in self.model.parameters()}
        return max(
            most_held(len(fused[key]), processes) * (numel // len(fused[key])) if key in fused else numel
            for key, numel in weights.items()
        )

    @cached_property
    def num_experts(self) -> int:
        """E, of the layer that has the most routed experts; 0 for a dense model."""
        return max((block.num_experts for block in find_experts(self.model)), default=0)

    @property
    def num_chosen(self) -> int:
        """K, the routed experts that answer each token."""
        names = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk", "moe_k")
        configs = (self.config, getattr(self.config, "ffn_config", None))
        said = [getattr(config, name, None) for config in configs for name in names]
        return min(next((int(number) for number in said if isinstance(number, int)), 8), self.num_experts)

    @cached_property
    def layer_kinds(self) -> tuple[Hashable, ...]:
        """What each of its layers is: equal for those that are made alike."""
        return layer_kinds(self.model)

    @cached_property
    def keeps_float32(self) -> bool:
        """Whether transformers leaves some of its tensors in float32 when the others are cast."""
        lists = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
        pieces = [piece for name in lists for piece in getattr(self.model, name, None) or ()]
        return any(piece in name for name in self.model.state_dict() for piece in pieces)

    @property
    def is_read_through(self) -> bool:
        """Whether each tensor is multiplied out of what is read for it alone: no page of a file stays mapped."""
        return self.stored not in _BYTES or self.stored in ("nf4", "block-FP8")

    @property
    def stored_bytes(self) -> int:
        """About what its files take."""
        return round(self.num_parameters * (_BYTES.get(self.stored) or StoredFormat(self.stored).bytes_per_weight or 2))

    def mapped(self, dtype: torch.dtype, is_quantized: bool) -> tuple[int, int]:
        """Bytes of the files that stay mapped once the model is loaded in `dtype` or in 4 bits, and while it is.

        A tensor that is taken as it is stored is its pages; one that is cast, quantized or put together is a copy of
        them, and the pages stay as long as any tensor of the file is taken as it is.
        """
        if self.is_read_through:
            return 0, 0
        is_as_stored = dtype_named(self.stored) == dtype
        # transformers keeps some tensors, such as DeepSeek-V3's balancing bias, in float32 whatever the others become.
        is_partly = self.stored == "float32" and self.keeps_float32
        if is_quantized or not is_as_stored:
            whole = self.stored_bytes
            return (whole if is_as_stored or is_partly else 0), whole
        copied = round(self.stored_bytes * self.num_fused / max(self.num_parameters, 1))
        return copied, copied


def describe(base: Base) -> PlannedBase:
    """The base by its config.json alone. Raises ModelError for what is not there, or no causal language model."""
    if base.model in (None, embedded.NAME):
        folder, name = embedded.ensure(), embedded.NAME
    elif isinstance(ref := ModelRef.resolve(base.model), Missing):
        raise ModelError(f"{base.model}: there is no such folder", hint="a folder with a config.json is enough")
    elif isinstance(ref, Hub):
        folder, name = hub.fetch(str(base.model), base.revision, ("config.json", INDEX))[0], str(base.model)
    else:
        folder = local_path(str(base.model))
        name = str(folder)
        folder = folder.parent if folder.name == "config.json" else folder
    files = ModelFolder(folder, name)
    files.check()
    config = with_context(files.read_config(), base.context, name)
    if base.attention == "eager":  # the others keep alike
        config._attn_implementation = "eager"
    return PlannedBase(name, folder, config, _stored(files, config))


def _stored(files: ModelFolder, config: Any) -> str:
    stored = files.stored_format
    if stored in (StoredFormat.BLOCK_FP8, StoredFormat.NF4, StoredFormat.W4A16) or stored.is_multiplied_out:
        return stored.value
    declared = files.config_json
    kind = str(declared.get("dtype") or declared.get("torch_dtype") or getattr(config, "dtype", None) or "bfloat16")
    kind = kind.removeprefix("torch.")
    return kind if kind in _BYTES else "bfloat16"


def dtype_named(name: str) -> torch.dtype:
    """torch's number format of that name; what is stored quantized is computed with in bfloat16."""
    return {"float32": torch.float32, "float16": torch.float16}.get(name, torch.bfloat16)
