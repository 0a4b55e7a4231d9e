"""A 16-bit copy in the place of a quantized base: whether it is one, tensor by tensor, number by number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Located, with_weights
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import copy_command
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint
from dsr1_tune.models.weights.dequantized import Dequantized


def check_copy(base: Located, copy: Located, say: Callable[[str], None]) -> None:
    """Raise ModelError, naming a tensor, if `copy` is not `base` multiplied out. Every tensor of both is read."""
    say(f"Comparing {copy.name} with {base.name}, multiplied out.")
    shapes = {name: tuple(one.shape) for name, one in meta_model(base.config).state_dict().items()}
    weights = Dequantized(with_weights(base), torch.bfloat16, shapes)
    if different := _difference(weights, with_weights(copy)):
        raise ModelError(
            f"{copy.name}: is no copy of {base.name}, over which was trained: {different}",
            hint=f"make one: {copy_command(base.name)}",
        )


def _difference(weights: Dequantized, folder: Path) -> str:
    """What first tells a copy from what it should be; empty where nothing does."""
    copy = Checkpoint(folder)
    names = {name for shard in weights.shards.values() for name in shard}
    if astray := sorted(names ^ set(copy.names)):
        return f"only one of the two has {astray[0]}"
    for name in sorted(names):
        stored = copy.read(name)
        if not torch.equal(stored, weights.read_as(name, DTYPES[copy.spec(name).dtype])):
            return f"{name} is another one"
    return ""
