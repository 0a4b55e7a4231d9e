"""A PEFT adapter as its files have it, and what a base's layers are called: in memory, on disk and by PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsr1_tune.errors import ModelError
from dsr1_tune.models.weights.checkpoint import Checkpoint, read_header
from dsr1_tune.models.weights.index import read_json
from dsr1_tune.models.weights.layout import Layout, Piece
from dsr1_tune.moe.anatomy import find_experts

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
RIGHT_BASE = "give an adapter together with the base that it was trained on"


class AdapterFile(Checkpoint):
    """The tensors of one file, each read when it is needed."""

    def __init__(self, file: Path) -> None:
        self.folder = file.parent
        self._found = read_header(file)
        self.shards = {file.name: tuple(self._found)}


@dataclass(frozen=True)
class Names:
    """What the layers of a model are called in memory and on disk."""

    layout: Layout
    blocks: Mapping[str, tuple[str, ...]]
    """For each module of fused experts its parameters, in the order in which PEFT wraps them."""
    transposed: frozenset[str]
    """Those of the modules that hold (in, out) matrices."""

    @classmethod
    def of(cls, model: nn.Module) -> Names:
        """Those of a model, which may be one without weights; on disk as transformers writes it."""
        blocks = find_experts(model)
        order = {b.name: tuple(n for n, _ in b.module.named_parameters(recurse=False)) for b in blocks}
        return cls(
            Layout.of(model, _names_on_disk(model)),
            {b.name: tuple(name for name in order[b.name] if name in b.parameters) for b in blocks},
            frozenset(b.name for b in blocks if b.module.is_transposed),
        )

    def block_of(self, module: str) -> str | None:
        """The module of fused experts that PEFT's name means; its wrappers are nested as base_layer."""
        name = module
        while name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        return name if name in self.blocks else None

    def parameter_of(self, block: str, num_in: int, num_out: int) -> tuple[str, int] | None:
        """Which fused parameter takes so many inputs to so many outputs, and its number of experts."""
        for parameter in self.blocks[block]:
            full = f"{block}.{parameter}"
            num_experts, rows, columns = self.layout.shapes[full]
            if (num_in, num_out) == ((rows, columns) if block in self.transposed else (columns, rows)):
                return full, num_experts
        return None

    def on_disk(self, parameter: str) -> str:
        """The stored name of a parameter that is stored whole. Raises ModelError if there is none."""
        pieces = self.layout.pieces_of(parameter)
        if len(pieces) != 1 or pieces[0].expert is not None:
            raise ModelError(f"{parameter}: is nowhere in the base", hint=RIGHT_BASE)
        return pieces[0].stored

    def in_memory(self, stored: str) -> Piece:
        """Where a stored tensor belongs. Raises ModelError if nowhere."""
        if stored not in self.layout.pieces:
            raise ModelError(f"{stored}: is nowhere in the base", hint=RIGHT_BASE)
        return self.layout.pieces[stored]


def _names_on_disk(model: nn.Module) -> set[str]:
    """Every tensor's name as transformers would save it, from its own conversion of small ones."""
    from transformers.core_model_loading import revert_weight_conversion

    fused = {f"{block.name}.{parameter}" for block in find_experts(model) for parameter in block.parameters}
    small = {
        name: torch.zeros(tensor.shape[0], 4, 2) if name in fused else torch.zeros((1,) * max(tensor.dim(), 1))
        for name, tensor in model.state_dict().items()
    }
    return set(revert_weight_conversion(model, small))


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter on disk."""

    file: AdapterFile
    config: dict[str, Any]
    layers: Mapping[str, Mapping[str, str]]
    """By module what there is of it, such as lora_A.weight, under which full name in the file."""
    saved: Mapping[str, str]
    """Whole weights that PEFT keeps, such as a trained router's, by parameter."""

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter in a folder, its tensors not yet. Raises ModelError if it is none, or damaged."""
        config = read_json(folder / "adapter_config.json")
        kind = config.get("peft_type")
        if kind != "LORA" or "r" not in config or "lora_alpha" not in config:
            raise ModelError(f"{folder}: is no LoRA adapter ({kind})", hint="only LoRA has these two forms")
        file = AdapterFile(folder / FILE)
        layers: dict[str, dict[str, str]] = {}
        saved = {}
        for key in file.names:
            module, found, what = key.removeprefix(PREFIX).partition(".lora_")
            if found:
                layers.setdefault(module, {})[f"lora_{what}"] = key
            else:
                saved[module] = key
        return cls(file, config, layers, saved)

    def pair(self, module: str) -> tuple[str, str]:
        """The names of A and B. Raises ModelError if there is more to the module, or less."""
        parts = self.layers[module]
        if parts.keys() != {"lora_A.weight", "lora_B.weight"}:
            raise ModelError(
                f"{module}: has {', '.join(sorted(parts))}, and experts can have only A and B",
                hint="merge the adapter instead: dsr1-tune merge",
            )
        return parts["lora_A.weight"], parts["lora_B.weight"]

    def rank(self, module: str) -> int:
        """Of the module's LoRA A and B."""
        key = next(key for what, key in self.layers[module].items() if what.startswith(("lora_A", "lora_embedding_A")))
        return self.file.spec(key).shape[0]

    @property
    def is_rs(self) -> bool:
        """Whether it is scaled as rsLoRA is."""
        return bool(self.config.get("use_rslora"))
