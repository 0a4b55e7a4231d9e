"""Training a base's own weights: which of them are trained, and the whole model that is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Located
from dsr1_tune.models.meta import layer_stack
from dsr1_tune.models.tokenizer_files import copy_tokenizer, write_generation_config
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.text.amount import amount


def enable_full_training(model: nn.Module, only: Sequence[str]) -> None:
    """Freeze `model` but for the weights that `only` names, as config.Train has it; routers are never among them.

    Raises ModelError, naming it, for a part that the model does not have, or more layers than it has.
    """
    part_of = Anatomy(model)
    parts = {name for name in only if not name.startswith("last:")}
    layers = _last_layers(model, only)
    trained: set[str] = set()
    for name, weight in model.named_parameters():
        part = part_of(name)
        is_named = part in parts if parts else part != "router"
        is_trained = is_named and (layers is None or any(name.startswith(f"{layer}.") for layer in layers))
        weight.requires_grad_(is_trained and weight.is_floating_point())
        if is_trained:
            trained.add(part)
    if absent := sorted(parts - trained):
        where = f" in its last {amount(len(layers), 'layer')}" if layers else ""
        raise ModelError(
            f"train.only: the model has no {', '.join(absent)}{where}",
            hint="leave them out; `dsr1-tune full` shows the model's parts before it trains",
        )


def _last_layers(model: nn.Module, only: Sequence[str]) -> list[str] | None:
    """The names of the layers that the smallest last:N means; None where all of the model is meant."""
    wanted = [int(name.removeprefix("last:")) for name in only if name.startswith("last:")]
    if not wanted:
        return None
    num_layers = model.config.num_hidden_layers
    stack = layer_stack(model)
    if min(wanted) > num_layers:
        raise ModelError(
            f"train.only: last:{min(wanted)}: the model has {amount(num_layers, 'layer')}", hint="name fewer"
        )
    return [f"{stack}.{number}" for number in range(num_layers - min(wanted), num_layers)]


def save_model(model: Any, base: Located, folder: Path) -> None:
    """Write the whole model, in the number format it was trained in, with its tokenizer, whole or not at all."""
    with atomic_folder(folder) as part:
        # Training goes without the cache; whoever loads the model will want it.
        use_cache, model.config.use_cache = model.config.use_cache, True
        try:
            model.save_pretrained(str(part))
        finally:
            model.config.use_cache = use_cache
        copy_tokenizer(base.folder, part)
        write_generation_config(base.folder, base.tokenizer, part)
