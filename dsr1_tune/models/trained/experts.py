"""Trained experts as files: what `esft` moved of a base, and how it gets onto that base again.

The folder holds `experts.safetensors` (the chosen experts' weights, or their LoRA A and B, and what else was
trained), `experts_config.json` (the base, how they were trained, and which they are) and the tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dsr1_tune.atomic import atomic_folder, atomic_write
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Loaded, Located
from dsr1_tune.models.ref import EXPERTS_CONFIG
from dsr1_tune.models.tokenizer_files import copy_tokenizer, write_generation_config
from dsr1_tune.moe.anatomy import find_experts, is_balancing_bias
from dsr1_tune.moe.selected_experts import ChosenLora, train_lora, trained_tensors

WEIGHTS = "experts.safetensors"
_FORMAT = "dsr1-tune trained experts 1"
_RIGHT_BASE = "give trained experts together with the base that they were trained on"


@dataclass(frozen=True)
class Layer:
    """One layer's experts: how many there are, and the numbers of those that were trained."""

    num_experts: int
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class ExpertsConfig:
    """What experts_config.json says."""

    base_model_name_or_path: str
    revision: str | None
    method: Literal["weights", "lora"]
    rank: int
    scale: float
    layers: dict[str, Layer]

    @classmethod
    def of(cls, model: nn.Module, base: Located) -> ExpertsConfig:
        """What there is to say of a model whose experts were trained."""
        trained = [(block, block.module.chosen) for block in find_experts(model) if hasattr(block.module, "chosen")]
        lora = next((chosen for _, chosen in trained if isinstance(chosen, ChosenLora)), None)
        layers = {block.name: Layer(block.num_experts, chosen.numbers) for block, chosen in trained}
        revision = base.revision if base.repo_id else None
        if lora is None:
            return cls(base.name, revision, "weights", 0, 0.0, layers)
        return cls(base.name, revision, "lora", lora.rank, lora.scale, layers)

    @classmethod
    def read(cls, folder: Path) -> ExpertsConfig:
        """Read experts_config.json; raises ModelError if it is damaged."""
        file = folder / EXPERTS_CONFIG
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
            if tree.pop("format") != _FORMAT:
                raise ValueError("is of another version")
            layers = {
                name: Layer(int(layer["num_experts"]), tuple(map(int, layer["chosen"])))
                for name, layer in tree.pop("layers").items()
            }
            return cls(**tree, layers=layers)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: cannot be used: {error}", hint="copy the folder again") from None


def save_experts(model: nn.Module, base: Located, folder: Path) -> None:
    """Write what was trained of `model` with the tokenizer to `folder`, whole or not at all."""
    tensors: dict[str, Tensor] = dict(trained_tensors(model))
    tensors |= {name: one for name, one in model.named_parameters() if one.requires_grad and ".chosen." not in name}
    # Balancing biases may have been moved; they are small.
    both = (*model.named_parameters(), *model.named_buffers())
    tensors |= {name: one for name, one in both if is_balancing_bias(name)}
    with atomic_folder(folder) as part:
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(plain, part / WEIGHTS, metadata={"format": "pt"})
        with atomic_write(part / EXPERTS_CONFIG) as file:
            json.dump({"format": _FORMAT, **asdict(ExpertsConfig.of(model, base))}, file, indent=1, ensure_ascii=False)
        copy_tokenizer(base.folder, part)
        write_generation_config(base.folder, base.tokenizer, part, always=False)


@torch.no_grad()
def attach_experts(loaded: Loaded, folder: Path) -> Any:
    """The loaded base with the trained experts of `folder` in their places.

    Raises ModelError if the base is not of the shape that they were trained on, or the files are damaged.
    """
    config, model = ExpertsConfig.read(folder), loaded.model
    have = {block.name: block.num_experts for block in find_experts(model)}
    for name, layer in config.layers.items():
        if name not in have:
            raise ModelError(f"{folder}: {loaded.name} has no experts called {name}", hint=_RIGHT_BASE)
        if have[name] != layer.num_experts:
            raise ModelError(
                f"{folder}: {name} had {layer.num_experts} experts, in {loaded.name} it has {have[name]}",
                hint=_RIGHT_BASE,
            )
    if config.method == "lora":
        train_lora(model, {name: layer.chosen for name, layer in config.layers.items()}, config.rank, config.scale)
    places = _places(model, config)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            names = set(file.keys())
            if missing := sorted(places.keys() - names):
                raise ModelError(f"{folder / WEIGHTS}: has no {missing[0]}", hint="copy the folder again")
            for name in sorted(names):
                _put(name, file.get_tensor(name), places, loaded, folder)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS}: is damaged: {error}", hint="copy the folder again") from error
    return model.requires_grad_(False).eval()


def _places(model: nn.Module, config: ExpertsConfig) -> dict[str, Tensor]:
    if config.method == "lora":
        return dict(trained_tensors(model))
    blocks = {block.name: block for block in find_experts(model)}
    return {
        f"{name}.{number}.{parameter}": fused[number]
        for name, layer in config.layers.items()
        for parameter, fused in blocks[name].module.named_parameters(recurse=False)
        for number in layer.chosen
    }


def _put(name: str, saved: Tensor, places: dict[str, Tensor], loaded: Loaded, folder: Path) -> None:
    place = places.get(name)
    if place is None:
        place = (dict(loaded.model.named_parameters()) | dict(loaded.model.named_buffers())).get(name)
    if place is None or place.shape != saved.shape:
        said = "has no such weight" if place is None else f"has it as {tuple(place.shape)}"
        raise ModelError(
            f"{folder / WEIGHTS}: {name} {tuple(saved.shape)} does not go onto {loaded.name}, which {said}",
            hint=_RIGHT_BASE,
        )
    place.copy_(saved)
