"""LoRA on every part that learns: PEFT owns the parameters, `moe.expert_lora` applies those of the experts.

The coverage audit tells what is trained before the first step; the gradient check proves it after the first.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.config import GROUPS, Adapter, Group, Router
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import Located
from dsr1_tune.models.tokenizer_files import copy_tokenizer, write_generation_config
from dsr1_tune.models.trained import lora_init
from dsr1_tune.models.trained.reach import left_out
from dsr1_tune.moe.anatomy import PARTS, Anatomy, Part, find_experts, find_linears, find_routers, plain_name
from dsr1_tune.moe.expert_lora import use_grouped_products
from dsr1_tune.moe.routing import check_routers, open_routers
from dsr1_tune.moe.selected_experts import ChosenLora, are_chosen_rows
from dsr1_tune.moe.shared_factors import shards_by_parameter, sharing_factors

# PEFT rewrites these module names to the fused experts of a mixture of experts, wherever they stand, full names and
# regular expressions too; a linear layer of such a name is reached through its weight, which PEFT takes as it is.
REWRITTEN = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
_FROZEN = Router()
_SMALL_PART = 0.01


def add_lora(model: nn.Module, adapter: Adapter, router: Router = _FROZEN) -> PeftModel:
    """Wrap `model` with LoRA on the parts named in `adapter.groups`, and its routers as `router` says.

    Raises ModelError as `check_adapter` does.
    """
    check_adapter(model, adapter, router)
    targets = _targets(model, adapter.groups)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        target_modules=sorted({name for target in targets for name in target.modules}),
        target_parameters=sorted({name for target in targets for name in target.parameters}) or None,
        rank_pattern=_patterns(targets, adapter.ranks),
        alpha_pattern=_patterns(targets, adapter.alphas),
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        modules_to_save=_router_names(model) if router.mode != "frozen" else None,
    )
    with quiet_patterns(), sharing_factors():
        peft_model = get_peft_model(model, config)
    use_grouped_products(peft_model)
    open_routers(peft_model, router.mode)
    for layer in peft_model.modules():
        if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
            continue
        # PEFT would refuse both for the experts' sake. Neither matters to who loads the adapter: its A and B are
        # saved as they have become, and there is no dropout outside training.
        lora_init.begin(layer, adapter.init)
        if adapter.dropout:
            layer.lora_dropout["default"] = nn.Dropout(adapter.dropout)
    return peft_model


def check_adapter(model: nn.Module, adapter: Adapter, router: Router = _FROZEN) -> None:
    """Refuse what cannot be done on this model, which may be one without weights. Raises ModelError."""
    check_routers(model, router.mode)
    targets = _targets(model, adapter.groups)
    if not any(target.modules or target.parameters for target in targets):
        raise ModelError(
            f"the model has no layers of the groups {', '.join(adapter.groups)}",
            hint=f"choose among {', '.join(GROUPS)} with --set adapter.groups=[...]",
        )
    there = {target.group for target in targets if target.modules or target.parameters}
    asked = {*adapter.ranks, *adapter.alphas, *(adapter.groups if adapter.groups != GROUPS else ())}
    if absent := [group for group in GROUPS if group in asked - there]:
        raise ModelError(
            f"adapter names {', '.join(absent)}, which the model does not have",
            hint=f"it has {', '.join(group for group in GROUPS if group in there)}",
        )
    unable = [target.group for target in targets if target.parameters]
    if adapter.dora and unable:
        able = [target.group for target in targets if target.modules and target.group not in unable]
        raise ModelError(
            f"adapter.dora: in this mixture of experts PEFT reaches {', '.join(unable)} through bare parameters, "
            "which have no DoRA, and one adapter is all with it or all without",
            hint=f"--set adapter.groups=[{','.join(able)}]" if able else "leave adapter.dora=false",
        )
    if adapter.init not in ("orthogonal", "pissa", "olora"):
        return
    for name, linear, part in _reached(model):
        if part not in adapter.groups:
            continue
        rank = adapter.ranks.get(part, adapter.rank)
        if adapter.init == "orthogonal" and rank % 2:
            raise ModelError(f"adapter.init=orthogonal needs even ranks; {part} has {rank}", hint=f"take {rank + 1}")
        if adapter.init != "orthogonal" and rank > min(linear.in_features, linear.out_features):
            raise ModelError(
                f"adapter.init={adapter.init}: {name} is {linear.out_features} x {linear.in_features} and has no "
                f"{rank} directions to begin with",
                hint=f"lower adapter.rank, or adapter.ranks for {part}",
            )


@contextmanager
def quiet_patterns() -> Iterator[None]:
    """PEFT says of ranks and alphas of bare parameters that they were ignored, when they were not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(rank|alpha)_pattern keys did not match", category=RuntimeWarning)
        yield


@dataclass(frozen=True)
class _Targets:
    """How PEFT is told of a group: the shortest names that hit nothing else."""

    group: Group
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


def _targets(model: nn.Module, groups: Iterable[Group]) -> list[_Targets]:
    """For each group names that hit all of it and, so that ranks may differ, nothing of any other."""
    blocks = find_experts(model)
    linears = _reached(model)
    names = [name for name, _ in model.named_modules()]
    targets = []
    for group in groups:
        own = {name for name, _, part in linears if part == group}
        others = {ending for name in names if name not in own for ending in _endings(name)}
        suffixes = {next((one for one in _endings(name) if one not in others), name) for name in own}
        bare = {suffix for suffix in suffixes if blocks and suffix.rpartition(".")[2] in REWRITTEN}
        parameters = {f"{suffix}.weight" for suffix in bare}
        if group == "routed_experts":
            leaves = {(block.name.rpartition(".")[2], parameter) for block in blocks for parameter in block.parameters}
            parameters |= {f"{leaf}.{parameter}" for leaf, parameter in leaves}
        if group == "shared_experts":
            parameters |= {".".join(name.split(".")[-2:]) for name in _fused_shared(model)}
        targets.append(_Targets(group, tuple(sorted(suffixes - bare)), tuple(sorted(parameters))))
    return targets


def _fused_shared(model: nn.Module) -> list[str]:
    """The weights of shared experts that are held by one module in place of linear layers, (S, out, in) each."""
    part_of = Anatomy(model)
    return [
        name
        for name, weight in model.named_parameters()
        if weight.dim() == 3 and ".lora_" not in name and part_of(name) == "shared_experts"
    ]


def _reached(model: nn.Module) -> list[tuple[str, nn.Linear, Part]]:
    """Every linear layer from which an update would reach the output, with its name and part."""
    without = left_out(model)
    return [one for one in find_linears(model) if one[0] not in without]


def _endings(name: str) -> list[str]:
    """The dotted ends of a name, the shortest first, without the whole of it."""
    pieces = name.split(".")
    return [".".join(pieces[-length:]) for length in range(1, len(pieces))]


def _shortest_ending(name: str, others: list[str]) -> str:
    """The shortest dotted end of `name` that no name in `others` ends with."""
    return next((one for one in _endings(name) if not any(other.endswith(one) for other in others)), name)


def _patterns(targets: Iterable[_Targets], given: dict[Group, Any]) -> dict[str, Any]:
    """PEFT's rank_pattern or alpha_pattern: regular expressions that fit the ends of names."""
    return {
        re.escape(name): given[target.group]
        for target in targets
        if target.group in given
        for name in (*target.modules, *target.parameters)
    }


def _router_names(model: nn.Module) -> list[str]:
    """The shortest names of the routers that no other module's name ends with, as PEFT compares them."""
    routers = {router.name for router in find_routers(model)}
    others = [name for name, _ in model.named_modules() if name not in routers]
    return sorted({_shortest_ending(name, others) for name in routers})


@dataclass
class PartCoverage:
    """One line of the coverage audit, in numbers of parameters."""

    part: Part
    num_base: int = 0
    """The base model's own."""
    num_adapted: int = 0
    """Those of the base that an update reaches."""
    num_trained: int = 0
    """Those that the optimizer moves."""
    num_frozen: int = 0
    """Those that it does not."""


def audit(model: nn.Module) -> list[PartCoverage]:
    """What is trained and what is not, by part of the model, from the model as it stands.

    Experts that several processes share out count as one process's.
    """
    part_of, shards = Anatomy(model), shards_by_parameter(model)

    def size(parameter: Tensor) -> int:
        shard = shards.get(id(parameter))
        return shard.of_all(parameter.numel()) if shard else parameter.numel()

    found = {part: PartCoverage(part) for part in PARTS}
    for name, parameter in model.named_parameters():
        line, num, is_rows = found[part_of(name)], size(parameter), are_chosen_rows(name)
        if not is_rows and ".lora_" not in name and ".modules_to_save." not in name:
            line.num_base += num
        if parameter.requires_grad and ".lora_" not in name:
            line.num_adapted += num
        if parameter.requires_grad:
            line.num_trained += num
        else:
            line.num_frozen += num
        if is_rows:  # a part of a fused weight, which is counted too
            line.num_frozen -= num
    for name, layer in model.named_modules():
        if isinstance(layer, ParamWrapper):
            found[part_of(f"{name}.{layer.parameter_name}")].num_adapted += size(layer.get_param())
        elif isinstance(layer, LoraLayer):
            found[part_of(f"{name}.weight")].num_adapted += layer.get_base_layer().weight.numel()
        elif isinstance(layer, ChosenLora):
            found[part_of(f"{name}.lora_A")].num_adapted += layer.num_reached
    return [line for line in found.values() if line.num_base]


def not_adapted(model: nn.Module, groups: Collection[Part]) -> dict[str, str]:
    """The linear layers of `groups` that can have no update, by their full names, with the reasons."""
    part_of = Anatomy(model)
    return {name: reason for name, reason in left_out(model).items() if part_of(f"{name}.weight") in groups}


def not_reached(coverage: Collection[PartCoverage], groups: Collection[Group]) -> list[str]:
    """Warnings of whole parts of which nothing is adapted though all was asked for, but for very small ones."""
    num_base = sum(line.num_base for line in coverage)
    asked = {*groups, "other"} if set(groups) == set(GROUPS) else set(groups)
    return [
        f"warning: nothing of {line.part.replace('_', ' ')}, {line.num_base / num_base:.0%} of the base, is trained"
        for line in coverage
        if line.part in asked and not line.num_adapted and line.num_base >= _SMALL_PART * num_base
    ]


@dataclass
class _Gradients:
    """What one process sees of the first gradients: the largest of each part, and which are not finite."""

    largest: dict[Part, float] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)


def check_gradients(
    model: nn.Module,
    may_overflow: bool = False,
    all_gather: Callable[[list[_Gradients]], list[_Gradients]] = lambda mine: mine,
) -> bool:
    """After a backward pass: raise ModelError if a part that is trained received no gradient, or a bad one.

    With `may_overflow`, as float16's loss scaling does in its first steps, an infinite gradient raises nothing and
    False is returned: look again after the next step. `all_gather` adds what other processes have found, whose experts
    may have got tokens where those held here got none.
    """
    part_of = Anatomy(model)
    mine = _Gradients()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name)
            size = 0.0 if parameter.grad is None else float(parameter.grad.detach().abs().max())
            if not math.isfinite(size):
                mine.not_finite.append(plain_name(name))
            mine.largest[part] = max(mine.largest.get(part, 0.0), size)
    of_all = all_gather([mine])
    if wrong := [name for one in of_all for name in one.not_finite]:
        if may_overflow:
            return False
        raise ModelError(
            f"the first gradient of {wrong[0]} is not finite",
            hint="the base or its numbers are at fault: try --set base.dtype=float32",
        )
    if idle := sorted(part for part in mine.largest if all(one.largest[part] == 0.0 for one in of_all)):
        setting = "adapter.groups" if any(".lora_" in name for name, _ in model.named_parameters()) else "train.only"
        raise ModelError(
            f"after the first step these trained parts have received no gradient: {', '.join(idle)}; "
            "the run would train nothing there",
            hint=f"leave them out with --set {setting}=[...], and please report the model's architecture",
        )
    return True


def save_adapter(model: PeftModel, base: Located, folder: Path) -> None:
    """Write the adapter with tokenizer and chat template to `folder`, whole or not at all."""
    # By the name that others know it by: the cache folder it was loaded from is this machine's alone.
    model.active_peft_config.base_model_name_or_path = base.name
    model.active_peft_config.revision = base.revision if base.repo_id else None
    with atomic_folder(folder) as part:
        state, config = _against_the_base(model)
        kept = model.peft_config["default"]
        model.peft_config["default"] = config
        try:
            model.save_pretrained(str(part), save_embedding_layers=False, state_dict=state)
        finally:
            model.peft_config["default"] = kept
        copy_tokenizer(base.folder, part)
        write_generation_config(base.folder, base.tokenizer, part, always=False)


def _against_the_base(model: PeftModel) -> tuple[dict[str, Tensor] | None, LoraConfig]:
    """Weights and config of the update to the base as it was; None and as they are, but for pissa and olora.

    Those train B·A in place of its beginning B0·A0, so the update is [B, -B0]·[A; A0], of twice the rank. With twice
    alpha (rsLoRA: √2 times) the scale stays.
    """
    config = copy.deepcopy(model.peft_config["default"])
    layers = {name: layer for name, layer in model.named_modules() if lora_init.has_beginning(layer)}
    if not layers:
        return None, config
    state = model.state_dict()
    growth = math.sqrt(2) if config.use_rslora else 2
    ranks, alphas = {}, {}
    for name, layer in layers.items():
        begun_a, begun_b = layer.lora_A["default"].begun, layer.lora_B["default"].begun
        for key, more, dim in (("lora_A", begun_a, 0), ("lora_B", -begun_b, 1)):
            weight = state[f"{name}.{key}.default.weight"]
            state[f"{name}.{key}.default.weight"] = torch.cat([weight, more.to(weight)], dim=dim)
        target = plain_name(name) + (f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else "")
        ranks[target] = 2 * layer.r["default"]
        alphas[target] = growth * layer.lora_alpha["default"]
    config.rank_pattern = _with_own(config.rank_pattern, ranks)
    config.alpha_pattern = _with_own(config.alpha_pattern, alphas)
    return state, config


def _with_own(patterns: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The patterns that fit none of the full names in `own`, and those names with their values; the order is PEFT's."""
    # Compared as PEFT does it.
    others = {key: value for key, value in patterns.items() if not any(re.match(rf"(.*\.)?({key})$", n) for n in own)}
    return others | {re.escape(name): value for name, value in own.items()}


def load_plain_adapter(base: Any, folder: Any) -> PeftModel:
    """The adapter in `folder` on `base`, by PEFT alone: what any other user of the adapter gets."""
    with quiet_patterns(), sharing_factors():
        # Read on the CPU: of experts that are shared out the file holds all.
        return PeftModel.from_pretrained(base, str(folder), torch_device="cpu").eval()
