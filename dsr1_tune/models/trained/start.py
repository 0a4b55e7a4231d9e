"""The adapter that alignment trains: a new one, one beside what a run has trained, or that run's own trained on.

The reference of DPO and PPO is the model as it begins. Nothing but the adapter's A and B is trained, so the reference
is the same model with its A and B as they began (with a new adapter: the adapter off), and never a second copy.

Letters: E experts (1 for a linear layer), R rank, N new ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from dsr1_tune.config import Adapter, AlignRun, TuneRun
from dsr1_tune.errors import ModelError
from dsr1_tune.models import ref
from dsr1_tune.models.load import Loaded
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.models.trained.lora import add_lora, check_adapter
from dsr1_tune.moe.anatomy import plain_name

_ADAPTER = "default"

Run = TypeVar("Run", bound=TuneRun)


def with_start(config: Run) -> Run:
    """Where an alignment is to begin with what a run left: with an adapter, its own base in the base's place.

    Raises ModelError where it is to begin with what no adapter can be put on.
    """
    if not isinstance(config, AlignRun):
        return config
    named = config.start.run or config.base.model
    found = ref.ModelRef.resolve(named)
    if isinstance(found, ref.RewardModel):
        found.refuse()
    if not isinstance(found, ref.Adapter):
        if config.start.run:
            raise ModelError(f"{config.start.run}: holds no adapter", hint="give a run of lora or qlora")
        if isinstance(found, ref.Experts):
            raise ModelError(
                f"{named}: holds trained experts, beside which no adapter is trained",
                hint=f"merge them first: dsr1-tune merge {named} --out merged, and start there",
            )
        if named is None:
            return config
        model = found.model if isinstance(found, ref.Run) and found.model else named
        return config.model_copy(update={"base": config.base.model_copy(update={"model": str(model)})})
    if config.method == "full":
        raise ModelError(
            f"{named}: is an adapter, and method=full trains a base",
            hint=f"merge it first: dsr1-tune merge {named} --out merged, and start there",
        )
    if config.adapter != Adapter() and config.start.adapter == "continue":
        raise ModelError(
            f"{named}: start.adapter=continue trains the ranks that it has, so adapter has nothing to say",
            hint="leave adapter as it is, or take start.adapter=keep, which adds adapter.rank ranks",
        )
    if config.start.adapter == "keep":
        if config.adapter != Adapter(rank=config.adapter.rank):
            raise ModelError(
                f"{named}: the new ranks of start.adapter=keep stand in the layers, and have the scale, of its own",
                hint="of adapter give the rank alone",
            )
        if config.schedule.weight_decay:
            raise ModelError(
                f"{named}: schedule.weight_decay would shrink the adapter that start.adapter=keep leaves as it is",
                hint="leave schedule.weight_decay=0, or take start.adapter=continue",
            )
        if "8bit" in config.schedule.optimizer:
            raise ModelError(
                f"{named}: {config.schedule.optimizer} moves even weights without a gradient, and so the adapter that "
                "start.adapter=keep leaves as it is",
                hint="take schedule.optimizer=adamw, or start.adapter=continue",
            )
    if config.base.revision:
        raise ModelError(
            f"{named}: its base is the one that it was trained on, so base.revision has nothing to say",
            hint="leave base.revision out",
        )
    base = found.base
    said = {"dtype": config.base.dtype} if config.base.dtype != "auto" else {}
    base = base.model_copy(update=said | ({"context": config.base.context} if config.base.context else {}))
    start = config.start.model_copy(update={"run": found.path.absolute()})
    return config.model_copy(update={"base": base, "start": start})


def check_begin(config: AlignRun, base_config: Any) -> None:
    """Refuse an adapter that the base cannot have, before its weights are loaded. Raises ModelError."""
    if config.method != "full" and config.start.run is None:
        check_adapter(meta_model(base_config), config.adapter, config.router)


def begin_adapter(loaded: Loaded, config: AlignRun) -> PeftModel:
    """The model with the adapter that is to be trained on it, as `config.start` says; all else is frozen.

    With start.adapter=keep the A and B of the run keep their values bit for bit, and config.adapter.rank further
    ranks, of which B is 0, stand behind them in the same adapter. Raises ModelError.
    """
    start = config.start
    if start.run is None:
        return add_lora(loaded.model, config.adapter, config.router)
    model = attach_adapter(loaded, start.run).train(loaded.model.training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    if start.adapter == "keep":
        if getattr(model.peft_config[_ADAPTER], "use_dora", False):
            raise ModelError(
                f"{start.run}: is trained with DoRA, beside which no further ranks can stand",
                hint="train it on with --set start.adapter=continue",
            )
        _add_ranks(model, config.adapter.rank)
    return model


def _add_ranks(model: PeftModel, num_new: int) -> None:
    """Put `num_new` ranks behind those of every layer, and let only these be trained."""
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    config = model.peft_config[_ADAPTER]
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or _ADAPTER not in layer.lora_A:
            continue
        rank = layer.r[_ADAPTER]
        # The scale, alpha / R (rsLoRA: alpha / √R), stays as it is.
        growth = (rank + num_new) / rank
        layer.lora_alpha[_ADAPTER] *= math.sqrt(growth) if config.use_rslora else growth
        layer.r[_ADAPTER] = rank + num_new
        num_experts = layer.num_experts if isinstance(layer, ParamWrapper) else 1
        _grow(layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER], num_experts, rank, num_new)
        target = plain_name(name) + (f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else "")
        ranks[target], alphas[target] = layer.r[_ADAPTER], layer.lora_alpha[_ADAPTER]
    config.r = max(set(ranks.values()), key=list(ranks.values()).count)
    config.lora_alpha = max(set(alphas.values()), key=list(alphas.values()).count)
    config.rank_pattern = {re.escape(name): rank for name, rank in ranks.items() if rank != config.r}
    config.alpha_pattern = {re.escape(name): alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}


def _grow(lora_a: nn.Linear, lora_b: nn.Linear, num_experts: int, rank: int, num_new: int) -> None:
    """PEFT packs A (E·R, in) expert-major and B (out, R·E) rank-major."""
    old_a, old_b = lora_a.weight.detach(), lora_b.weight.detach()
    new_a = old_a.new_empty(num_experts, num_new, old_a.shape[1])
    for expert in new_a:
        nn.init.kaiming_uniform_(expert, a=math.sqrt(5))
    a_ERD = torch.cat([old_a.view(num_experts, rank, -1), new_a], dim=1)
    b = torch.cat([old_b, old_b.new_zeros(old_b.shape[0], num_new * num_experts)], dim=1)
    lora_a.weight = nn.Parameter(a_ERD.reshape(-1, old_a.shape[1]))
    lora_b.weight = nn.Parameter(b)
    lora_a.out_features = lora_b.in_features = (rank + num_new) * num_experts
    lora_a.weight.register_hook(_without(lambda grad: grad.view(num_experts, -1, grad.shape[1])[:, :rank]))
    lora_b.weight.register_hook(_without(lambda grad: grad[:, : rank * num_experts]))


def _without(old: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A hook that makes the gradient of the `old` ranks, a view of it, zero."""

    def cut(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        old(gradient).zero_()
        return gradient

    return cut


@dataclass(frozen=True)
class ReferencePolicy:
    """The reference policy: a model's trained parameters as they were when this was made, without a second model."""

    parameters: tuple[nn.Parameter, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: nn.Module) -> ReferencePolicy:
        """Copy the trainable parameters of `model`, which are few where an adapter is trained."""
        trained = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
        return cls(trained, tuple(parameter.detach().clone() for parameter in trained))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the model is the reference policy. Nothing is copied, and no gradients are computed."""
        now = [parameter.data for parameter in self.parameters]
        try:
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.data = value
            with torch.no_grad():
                yield
        finally:
            for parameter, value in zip(self.parameters, now, strict=True):
                parameter.data = value
