"""A 16-bit copy in the place of a quantized base: whether it is one, tensor by tensor, number by number."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.progress import names_of
from dsr1_tune.models.load import Located, with_weights
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import copy_command
from dsr1_tune.models.weights.apart import as_transformers_stores
from dsr1_tune.models.weights.checkpoint import DTYPES, Checkpoint, Weights
from dsr1_tune.models.weights.dequantized import WIDE, Dequantized
from dsr1_tune.models.weights.layout import Layout


def check_copy(base: Located, copy: Located, say: Callable[[str], None]) -> None:
    """Raise ModelError, naming a tensor, if `copy` is not `base` multiplied out. Every tensor of both is read."""
    say(f"Comparing {copy.name} with {base.name}, multiplied out.")
    model = meta_model(base.config)
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    written = Checkpoint(with_weights(copy))
    wide = (DTYPES[written.spec(name).dtype] for name in written.names if written.spec(name).dtype in WIDE)
    weights = Dequantized(with_weights(base), next(wide, torch.float32), shapes)
    expected = as_transformers_stores(weights, Layout.of(model, names_of(weights)))
    if different := _difference(expected, written):
        raise ModelError(
            f"{copy.name}: is no copy of {base.name}, over which was trained: {different}",
            hint=f"make one: {copy_command(base.name)}",
        )


def _difference(expected: Weights, copy: Checkpoint) -> str:
    """What first tells a copy from what it should be; empty where nothing does."""
    names = names_of(expected)
    if astray := sorted(set(names) ^ set(copy.names)):
        return f"only one of the two has {astray[0]}"
    for name in names:
        if not torch.equal(copy.read(name), expected.read(name)):
            return f"{name} is another one"
    return ""
