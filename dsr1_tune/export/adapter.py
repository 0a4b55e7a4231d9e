"""A PEFT adapter as its files have it, what a base's layers are called by whom, and what adapter_config.json says."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
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
    family: str
    """Its model_type, for messages."""
    swapped: frozenset[str] = frozenset()
    """Those that hold (in, out) matrices, which PEFT takes for (out, in): A there is at the outputs."""

    @classmethod
    def of(cls, model: Any) -> Names:
        """Those of a model, which may be one without weights; on disk as transformers writes it.

        Experts that it writes as one tensor have the names of those that are taken apart.
        """
        blocks = find_experts(model)
        order = {b.name: tuple(n for n, _ in b.module.named_parameters(recurse=False)) for b in blocks}
        return cls(
            Layout.of(model, _names_on_disk(model)).taken_apart(),
            {b.name: tuple(name for name in order[b.name] if name in b.parameters) for b in blocks},
            frozenset(b.name for b in blocks if b.module.is_transposed),
            model.config.model_type,
            frozenset(b.name for b in blocks if b.is_transposed and not b.module.is_transposed),
        )

    def block_of(self, module: str) -> str | None:
        """The module of fused experts that PEFT's name means; its wrappers are nested as base_layer."""
        name = module
        while name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        return name if name in self.blocks else None

    def parameter_of(self, block: str, num_in: int, num_out: int, depth: int = 0) -> tuple[str, int] | None:
        """Which fused parameter takes so many inputs to so many outputs, and its number of experts.

        Where several do, as square ones, the last of them is wrapped outermost, at depth 0.
        """
        found = []
        for parameter in self.blocks[block]:
            full = f"{block}.{parameter}"
            num_experts, rows, columns = self.layout.shapes[full]
            if (num_in, num_out) == ((rows, columns) if block in self.transposed else (columns, rows)):
                found.append((full, num_experts))
        return found[max(-1 - depth, -len(found))] if found else None

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


# --- adapter_config.json: how A and B are scaled, and which layers have them, by the fewest names ---------------------


@dataclass(frozen=True)
class Scale:
    """How a pair of LoRA A and B is scaled: the update is alpha / rank · B·A, with rsLoRA alpha / √rank · B·A."""

    rank: int
    alpha: float

    def times(self, is_rs: bool) -> float:
        """The number itself."""
        return self.alpha / (math.sqrt(self.rank) if is_rs else self.rank)

    def at_rank(self, rank: int, is_rs: bool) -> Scale:
        """The same number for factors of another rank."""
        growth = rank / self.rank
        return Scale(rank, self.alpha * (math.sqrt(growth) if is_rs else growth))


def scale_of(config: Mapping[str, Any], name: str, rank: int) -> Scale:
    """Of the pair of this rank on `name`, a module or a parameter, by PEFT's rules. Raises ModelError if they differ.

    A linear layer may have been reached through its weight, and is then known by that name.
    """
    if any(f"{name}.weight".endswith(f".{target}") for target in config.get("target_parameters") or ()):
        name = f"{name}.weight"
    known = int(_by_pattern(config.get("rank_pattern"), name, config["r"]))
    if known != rank:
        raise ModelError(
            f"{name}: its factors have rank {rank}, but adapter_config.json says {known}",
            hint="the adapter is damaged, or was packed by a tool that does it otherwise; copy or export it again",
        )
    return Scale(rank, float(_by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])))


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first regular expression that fits the end of `name`, as PEFT compares them."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", name))
    return next(found, default)


def per_expert_config(config: Mapping[str, Any], scales: Mapping[str, Scale], layers: Iterable[str]) -> dict[str, Any]:
    """For pairs on the modules in `scales`, of all the `layers` that the model has, by their names on disk."""
    targets = {"target_modules": endings(scales, layers), "target_parameters": None}
    return {**config, **targets, **_patterns(config, scales)}


def fused_config(
    config: Mapping[str, Any], modules: Mapping[str, Scale], parameters: Mapping[str, Scale], layers: Iterable[str]
) -> dict[str, Any]:
    """For pairs on these modules and parameters; `layers` are the names of all that the model has, of both kinds."""
    layers = set(layers)
    targets = {"target_modules": endings(modules, layers), "target_parameters": endings(parameters, layers) or None}
    return {**config, **targets, **_patterns(config, {**modules, **parameters})}


def endings(names: Iterable[str], layers: Iterable[str]) -> list[str]:
    """The shortest dotted ends of `names` that no other of the `layers` ends with."""
    names = set(names)
    foreign = {end for name in set(layers) - names for end in _ends(name)}
    return sorted({next((end for end in _ends(name) if end not in foreign), name) for name in names})


def _ends(name: str) -> list[str]:
    """From the last piece to the whole name."""
    pieces = name.split(".")
    return [".".join(pieces[-length:]) for length in range(1, len(pieces) + 1)]


def _patterns(config: Mapping[str, Any], scales: Mapping[str, Scale]) -> dict[str, Any]:
    """PEFT's rank_pattern and alpha_pattern for what differs from the config's own rank and alpha."""
    alike: dict[str, set[Scale]] = defaultdict(set)
    for name, scale in scales.items():
        alike[_kind(name)].add(scale)
    by_key = {}
    for name, scale in scales.items():
        kind = _kind(name)
        by_key[kind if len(alike[kind]) == 1 else re.escape(name)] = scale
    rank, alpha = config["r"], float(config["lora_alpha"])
    return {
        "rank_pattern": {key: scale.rank for key, scale in by_key.items() if scale.rank != rank},
        "alpha_pattern": {key: scale.alpha for key, scale in by_key.items() if scale.alpha != alpha},
    }


def _kind(name: str) -> str:
    """A regular expression for the same place in every layer and every expert."""
    return ".".join(r"\d+" if piece.isdigit() else re.escape(piece) for piece in name.split("."))
