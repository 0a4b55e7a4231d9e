"""The weights of a checkpoint where a base's own weights are trained."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_NAME

from dsr1_tune.moe.anatomy import is_balancing_bias


def save_trained(model: nn.Module, state: dict[str, Tensor] | None, folder: Path) -> None:
    """Write what is trained of `model` (whose `state` is given where it is shared out) for the trainer to load again.

    By the names that it has in memory: transformers would save the whole model, its experts one by one as on disk,
    and when it loads the checkpoint would not find the fused ones in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trained_state(model, state), folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def trained_state(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The trained weights, of tied ones one, and the buffers, which training may move too."""
    state = model.state_dict() if state is None else state
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    moving = {name for name, weight in model.named_parameters() if weight.requires_grad or is_balancing_bias(name)}
    return {name: tensor.contiguous() for name, tensor in state.items() if name in moving or name not in weights}
