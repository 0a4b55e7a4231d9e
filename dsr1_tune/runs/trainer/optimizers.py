"""The optimizer of a run: which one the settings mean on this device, and which weights it moves how fast."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import nn
from transformers import Adafactor

from dsr1_tune.config import AlignRun, EsftRun, FullRun, LoraRun, QloraRun, Schedule, TuneRun
from dsr1_tune.errors import ConfigError
from dsr1_tune.runs.trainer.stochastic_adamw import Rounding, StochasticAdamW, load_exactly

_BETAS, _EPS = (0.9, 0.999), 1e-8
_NO_DECAY = ("bias", "norm", "magnitude")


def check_optimizer(schedule: Schedule, device: torch.device) -> None:
    """Refuse an optimizer that `device` has not, before anything is loaded. Raises ConfigError."""
    if schedule.optimizer == "paged_adamw_8bit" and device.type != "cuda":
        raise ConfigError(
            f"schedule.optimizer=paged_adamw_8bit moves its state between GPU and main memory; here is only {device}",
            hint="--set schedule.optimizer=adamw_8bit",
        )


def for_run(model: nn.Module, config: TuneRun, quantized: bool) -> torch.optim.Optimizer:
    """The optimizer that a run's settings ask for."""
    lora_plus = config.adapter.lora_plus if isinstance(config, (LoraRun, QloraRun, EsftRun, AlignRun)) else 1.0
    rounding = config.train.rounding if isinstance(config, (FullRun, AlignRun)) else getattr(config, "rounding", None)
    if isinstance(config, AlignRun) and config.start.run and config.start.adapter == "keep":
        quantized = False  # 8-bit AdamW, which auto may mean, moves even weights without a gradient
    return build(model, config.schedule, lora_plus=lora_plus, rounding=rounding, quantized=quantized)


def build(
    model: nn.Module,
    schedule: Schedule,
    *,
    lora_plus: float = 1.0,
    rounding: Rounding | None = None,
    quantized: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer for the model's trainable weights, with LoRA's B learning `lora_plus` times as fast.

    `rounding` says how AdamW's updates are rounded into 16-bit weights; without it those there are (routers trained
    beside an adapter) are rounded stochastically. 8-bit AdamW and Adafactor round to nearest. Norms, biases and
    DoRA's magnitudes are not decayed. Raises ConfigError as `check_optimizer` does.
    """
    groups = _groups(model, schedule, lora_plus)
    weights = [weight for group in groups for weight in group["params"]]
    device = weights[0].device
    check_optimizer(schedule, device)
    name = schedule.optimizer
    if name == "auto":
        name = "paged_adamw_8bit" if quantized and device.type == "cuda" else "adamw"
    common: dict[str, Any] = {"lr": schedule.learning_rate, "weight_decay": schedule.weight_decay}
    if name == "adafactor":
        return ExactAdafactor(groups, **common, scale_parameter=False, relative_step=False)
    common |= {"betas": _BETAS, "eps": _EPS}
    if name in ("adamw_8bit", "paged_adamw_8bit"):
        return _in_8_bits(model, groups, is_paged=name.startswith("paged"), **common)
    if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in weights):
        return StochasticAdamW(groups, **common, rounding=rounding or "stochastic")
    return torch.optim.AdamW(groups, **common, fused=device.type in ("cpu", "cuda"))


def _groups(model: nn.Module, schedule: Schedule, lora_plus: float) -> list[dict[str, Any]]:
    """The trainable weights by learning rate and decay; the base learning rate comes first: it is logged."""
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            factor = lora_plus if ".lora_B." in name else 1.0
            decays = weight.dim() > 1 and not any(piece in name.lower() for piece in _NO_DECAY)
            decay = schedule.weight_decay if decays else 0.0
            group = {"params": [], "lr": schedule.learning_rate * factor, "weight_decay": decay}
            groups.setdefault((factor, decay), group)["params"].append(weight)
    return [groups[key] for key in sorted(groups)]


def _in_8_bits(model: nn.Module, groups: list[dict[str, Any]], is_paged: bool, **settings: Any) -> Any:
    """bitsandbytes' AdamW with 8-bit state; weights of fewer than 4096 numbers and embeddings keep theirs in 32."""
    with warnings.catch_warnings():  # of its own parts
        warnings.simplefilter("ignore", DeprecationWarning)
        from bitsandbytes import optim
    optimizer = (optim.PagedAdamW8bit if is_paged else optim.AdamW8bit)(groups, **settings)
    manager = optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    return optimizer


def forget_8_bit() -> None:
    """Clear what bitsandbytes keeps of a model for the whole process: its weights, and settings by their number."""
    if "bitsandbytes" in sys.modules:
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().initialize()


class ExactAdafactor(Adafactor):
    """transformers' Adafactor (arXiv 1804.04235) that takes its float32 state up again as it was saved.

    torch would round it to the weights' 16 bits.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state."""
        super().load_state_dict(state_dict)
        load_exactly(self, state_dict)
