"""What adapter_config.json says: how LoRA A and B are scaled, and which layers have them, by the fewest names."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dsr1_tune.errors import ModelError


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
