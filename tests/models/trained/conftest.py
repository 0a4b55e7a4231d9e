"""A tiny model with LoRA on it, trained and saved as a run does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter, Base, Router
from dsr1_tune.models.load import locate
from dsr1_tune.models.trained.lora import (
    add_lora,
    load_plain_adapter,
    save_adapter,
)
from dsr1_tune.moe.anatomy import Anatomy

IDS = torch.randint(2, 258, (2, 19), generator=torch.Generator().manual_seed(0))


def lora_layers(model: nn.Module) -> dict[str, list[LoraLayer]]:
    """The LoRA layers by group."""
    part_of = Anatomy(model)
    layers: dict[str, list[LoraLayer]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            layers.setdefault(part_of(f"{name}.weight"), []).append(layer)
    return layers


def linear_layers(model: nn.Module) -> list[LoraLayer]:
    every = [layer for layers in lora_layers(model).values() for layer in layers]
    return [layer for layer in every if isinstance(layer.get_base_layer(), nn.Linear)]


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    return model.eval()(IDS).logits


class Made:
    """A tiny model on disk, with LoRA on it, trained and saved as a run does."""

    def __init__(self, folder: Path, adapter: Adapter, router: Router | None = None) -> None:
        self.base = locate(Base(model=str(folder)))
        self.untrained = logits_of(self.fresh())
        torch.manual_seed(3)
        self.model = add_lora(self.fresh(), adapter, router or Router())

    def fresh(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base.folder)

    def reloaded(self, folder: Path) -> Any:
        save_adapter(self.model, self.base, folder)
        return load_plain_adapter(self.fresh(), folder)
