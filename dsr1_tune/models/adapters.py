"""LoRA on every part that learns: PEFT owns the parameters, `moe.expert_lora` applies those of the experts.

The coverage audit tells what is trained before the first step; the gradient check proves it after the first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn

from dsr1_tune.config import GROUPS, Adapter, Group
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Located
from dsr1_tune.moe.anatomy import PARTS, Anatomy, Part, find_experts, find_linears, plain_name
from dsr1_tune.moe.expert_lora import use_grouped_products
from dsr1_tune.whole import whole_folder

# PEFT rewrites these module names to the fused experts of a mixture of experts, wherever they stand; a linear layer
# of such a name is reached through its weight instead, which PEFT takes as it is.
_REWRITTEN = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def add_lora(model: nn.Module, adapter: Adapter) -> PeftModel:
    """Wrap `model` with LoRA on the parts named in `adapter.groups`; the router is never among them.

    Raises ModelError if the model has none of these parts.
    """
    modules, parameters = _targets(model, adapter.groups)
    if not modules and not parameters:
        raise ModelError(
            f"the model has no layers of the groups {', '.join(adapter.groups)}",
            hint=f"choose among {', '.join(GROUPS)} with --set adapter.groups=[...]",
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=modules,
        target_parameters=parameters or None,
    )
    peft_model = get_peft_model(model, config)
    use_grouped_products(peft_model)
    return peft_model


def _targets(model: nn.Module, groups: Collection[Group]) -> tuple[list[str], list[str]]:
    """PEFT's `target_modules` and `target_parameters` for the groups: the shortest names that hit nothing else."""
    blocks = find_experts(model)
    linears = list(find_linears(model))
    modules: set[str] = set()
    parameters: set[str] = set()
    for name, _, part in linears:
        if part not in groups:
            continue
        others = [other for other, _, other_part in linears if other_part not in groups]
        suffix = _shortest_suffix(name, others)
        if blocks and name.rpartition(".")[2] in _REWRITTEN:
            parameters.add(f"{suffix}.weight")
        else:
            modules.add(suffix)
    if "routed_experts" in groups:
        for block in blocks:
            leaf = block.name.rpartition(".")[2]
            parameters.update(f"{leaf}.{parameter}" for parameter in block.parameters)
    return sorted(modules), sorted(parameters)


def _shortest_suffix(name: str, others: list[str]) -> str:
    """The shortest dotted end of `name` that no name in `others` ends with."""
    pieces = name.split(".")
    for length in range(1, len(pieces)):
        suffix = ".".join(pieces[-length:])
        if not any(other == suffix or other.endswith(f".{suffix}") for other in others):
            return suffix
    return name


@dataclass(frozen=True)
class PartCoverage:
    """One line of the coverage audit, in numbers of parameters."""

    part: Part
    num_base: int
    """The base model's own."""
    num_adapted: int
    """Those of the base that an update reaches."""
    num_trained: int
    """Those that the optimizer moves."""
    num_frozen: int
    """Those that it does not."""


def audit(model: nn.Module) -> list[PartCoverage]:
    """What is trained and what is not, by part of the model, from the model as it stands."""
    part_of = Anatomy(model)
    base: dict[Part, int] = dict.fromkeys(PARTS, 0)
    adapted: dict[Part, int] = dict.fromkeys(PARTS, 0)
    trained: dict[Part, int] = dict.fromkeys(PARTS, 0)
    frozen: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            base[part_of(name)] += parameter.numel()
        counted = trained if parameter.requires_grad else frozen
        counted[part_of(name)] += parameter.numel()
    for name, layer in model.named_modules():
        if isinstance(layer, ParamWrapper):
            adapted[part_of(f"{name}.{layer.parameter_name}")] += layer.get_param().numel()
        elif isinstance(layer, LoraLayer):
            adapted[part_of(f"{name}.weight")] += layer.get_base_layer().weight.numel()
    return [PartCoverage(part, base[part], adapted[part], trained[part], frozen[part]) for part in PARTS if base[part]]


def check_gradients(model: nn.Module, may_overflow: bool = False) -> bool:
    """After a backward pass: raise ModelError if a part that is trained received no gradient, or a bad one.

    With `may_overflow`, as float16's loss scaling does in its first steps, an infinite gradient raises nothing and
    False is returned: look again after the next step.
    """
    part_of = Anatomy(model)
    largest: dict[Part, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            size = 0.0 if parameter.grad is None else float(parameter.grad.detach().abs().max())
            if not math.isfinite(size):
                if may_overflow:
                    return False
                raise ModelError(
                    f"the first gradient of {plain_name(name)} is not finite",
                    hint="the base or its numbers are at fault: try --set base.dtype=float32",
                )
            largest[part] = max(largest.get(part, 0.0), size)
    idle = sorted(part for part, size in largest.items() if size == 0.0)
    if idle:
        raise ModelError(
            f"after the first step these trained parts have received no gradient: {', '.join(idle)}; "
            "the run would train nothing there",
            hint="leave them out with --set adapter.groups=[...], and please report the model's architecture",
        )
    return True


def count_trained(coverage: Iterable[PartCoverage]) -> int:
    """Parameters that the optimizer moves, in all."""
    return sum(line.num_trained for line in coverage)


def save_adapter(model: PeftModel, base: Located, folder: Path) -> None:
    """Write the adapter with tokenizer and chat template to `folder`, whole or not at all."""
    # By the name that others know it by: the cache folder it was loaded from is this machine's alone.
    model.active_peft_config.base_model_name_or_path = base.name
    model.active_peft_config.revision = base.revision if base.repo_id else None
    with whole_folder(folder) as part:
        model.save_pretrained(str(part), save_embedding_layers=False)
        base.tokenizer.save_pretrained(str(part))


def load_plain_adapter(base: Any, folder: Any) -> PeftModel:
    """The adapter in `folder` on `base`, by PEFT alone: what any other user of the adapter gets."""
    model = PeftModel.from_pretrained(base, str(folder))
    model.eval()
    return model
