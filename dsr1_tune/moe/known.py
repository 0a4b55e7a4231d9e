"""Is a mixture one whose experts are known here? One that is not must never be taken for a dense model."""

from __future__ import annotations

import re

from torch import nn

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import find_experts

_NAMES = re.compile(r"(^|_)(experts?|router|moe)(_|$)")
_CLASSES = re.compile(r"(Experts?|Router|MoE|Moe|SparseMoeBlock|TopKGating)$")


def check_known(model: nn.Module) -> None:
    """Raise ModelError, naming the family, for a mixture of which experts are not found; needs no weights."""
    known = {block.name for block in find_experts(model)}
    for name, module in model.named_modules():
        if (
            name in known
            or "shared" in name
            or not (_is_apart(module, name) if known else _is_of_mixture(module, name))
        ):
            continue
        family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ModelError(
            f"{family}: is a mixture whose experts ({name}, {type(module).__name__}) are laid out in a way that is not "
            "known here, so it can be neither trained nor merged nor quantized",
            hint="choose a family whose experts transformers fuses, as DeepSeek, Qwen3-MoE, GLM, Mixtral and gpt-oss",
        )


def _is_apart(module: nn.Module, name: str) -> bool:
    """Whether it holds experts beside those that are known."""
    is_named = name.rpartition(".")[2] == "experts"
    is_fused = any(weight.dim() == 3 for weight in module.parameters(recurse=False))
    return is_named and (is_fused or isinstance(module, nn.ModuleList))


def _is_of_mixture(module: nn.Module, name: str) -> bool:
    """Whether it is a part of a mixture of experts, where none are known."""
    return bool(_NAMES.search(name.rpartition(".")[2]) or _CLASSES.search(type(module).__name__))
