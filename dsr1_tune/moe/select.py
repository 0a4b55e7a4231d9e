"""Which experts a domain uses, and so which are worth training (ESFT, arXiv 2407.01906).

Scores are normalised within each layer, as the paper's formulas have it. `experts.json` keeps the choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dsr1_tune.atomic import atomic_write
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.monitor import Routing

Score = Literal["gate", "tokens"]

_FORMAT = "dsr1-tune experts 1"
_AGAIN = "write it again: dsr1-tune experts FILE"


@dataclass(frozen=True)
class LayerChoice:
    """One layer: every expert's share of the layer's score, and the numbers of those that are chosen, in order."""

    shares: tuple[float, ...]
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """The experts of a model that a domain uses, by the names of their layers' experts modules."""

    model: str
    revision: str | None
    data_sha256: dict[str, str]
    num_tokens: int
    score: Score
    share: float
    layers: dict[str, LayerChoice]

    @property
    def chosen(self) -> dict[str, tuple[int, ...]]:
        """The numbers of the chosen experts, by layer."""
        return {name: layer.chosen for name, layer in self.layers.items()}

    @property
    def num_chosen(self) -> int:
        """Chosen experts of all layers together."""
        return sum(len(layer.chosen) for layer in self.layers.values())

    @property
    def num_experts(self) -> int:
        """Experts of all layers together."""
        return sum(len(layer.shares) for layer in self.layers.values())

    def write(self, path: Path) -> None:
        """Write experts.json, whole or not at all."""
        with atomic_write(path) as file:
            json.dump({"format": _FORMAT, **asdict(self)}, file, indent=1, ensure_ascii=False)
            file.write("\n")

    @classmethod
    def read(cls, path: Path) -> Choice:
        """Read experts.json; raises ConfigError that names the place of what is wrong."""
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}", hint=_AGAIN) from None
        except ValueError as error:
            raise ConfigError(f"{path}: is no JSON: {error}", hint=_AGAIN) from None
        if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
            raise ConfigError(f"{path}: is no experts.json of this version", hint=_AGAIN)
        try:
            return cls(
                model=str(tree["model"]),
                revision=None if tree["revision"] is None else str(tree["revision"]),
                data_sha256={str(name): str(value) for name, value in tree["data_sha256"].items()},
                num_tokens=int(tree["num_tokens"]),
                score=_one_of(tree["score"]),
                share=float(tree["share"]),
                layers={str(name): _read_layer(name, layer) for name, layer in tree["layers"].items()},
            )
        except KeyError as error:
            raise ConfigError(f"{path}: has no {error.args[0]}", hint=_AGAIN) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{path}: {error}", hint=_AGAIN) from None

    def check(self, model: nn.Module, path: Path | str) -> None:
        """Raise ModelError, naming the layer, unless this choice (of the file `path`) was made for such a model."""
        have = {block.name: block.num_experts for block in find_experts(model)}
        hint = f"{path} is for {self.model}; profile the experts of this one: dsr1-tune experts FILE --model ..."
        if strange := [name for name in self.layers if name not in have]:
            raise ModelError(f"{path}: layers: the model has no {strange[0]}", hint=hint)
        if missing := [name for name in have if name not in self.layers]:
            raise ModelError(f"{path}: layers: has nothing of the model's {missing[0]}", hint=hint)
        for name, layer in self.layers.items():
            if len(layer.shares) != have[name]:
                said = f"{path}: layers.{name}: has {len(layer.shares)} experts, the model's layer has {have[name]}"
                raise ModelError(said, hint=hint)


def _one_of(value: Any) -> Score:
    if value not in ("gate", "tokens"):
        raise ValueError(f"score: {value} is neither gate nor tokens")
    score: Score = value
    return score


def _read_layer(name: str, tree: Mapping[str, Any]) -> LayerChoice:
    if not isinstance(tree, Mapping) or not tree.keys() >= {"shares", "chosen"}:
        raise ValueError(f"layers.{name}: has no shares or no chosen")
    if any(type(number) is not int for number in tree["chosen"]):
        raise ValueError(f"layers.{name}.chosen: holds something that is no number of an expert")
    layer = LayerChoice(tuple(map(float, tree["shares"])), tuple(tree["chosen"]))
    if len(set(layer.chosen)) < len(layer.chosen):
        raise ValueError(f"layers.{name}.chosen: names an expert twice")
    if wrong := [number for number in layer.chosen if not 0 <= number < len(layer.shares)]:
        raise ValueError(f"layers.{name}.chosen: there is no expert {wrong[0]} among {len(layer.shares)}")
    return layer


def choose(routing: Routing, score: Score, share: float) -> dict[str, LayerChoice]:
    """Per layer the fewest experts whose scores reach `share` of the layer's.

    `score` is "gate" for the gate weight that an expert's tokens give it, or "tokens" for their number. Raises
    ModelError for a layer that saw no token.
    """
    shares_LE = shares(routing, score)
    return {
        name: LayerChoice(tuple(shares_E.tolist()), fewest(shares_E, share))
        for name, shares_E in zip(routing.layers, shares_LE, strict=True)
    }


def shares(routing: Routing, score: Score) -> Tensor:
    """Each expert's share of its layer's score: (L, E), every row 1 in all."""
    score_LE = (routing.weight_LE if score == "gate" else routing.load_LE).double()
    # Some families' gate weights can be negative; what counts is how much an expert adds.
    score_LE = score_LE.clamp(min=0)
    total_L1 = score_LE.sum(1, keepdim=True)
    for name, total in zip(routing.layers, total_L1.flatten().tolist(), strict=True):
        if not total > 0:
            raise ModelError(f"{name}: no token was routed to its experts", hint="profile more data")
    return score_LE / total_L1


def fewest(shares_E: Tensor, share: float) -> tuple[int, ...]:
    """The numbers of the fewest experts whose shares add up to `share`; of equal ones the first."""
    order_E = torch.sort(shares_E, descending=True, stable=True).indices
    reached_E = shares_E[order_E].cumsum(0)
    # A sum of rounded shares may miss 1 by a little.
    num_chosen = int((reached_E < share - 1e-9).sum()) + 1
    return tuple(sorted(order_E[:num_chosen].tolist()))
