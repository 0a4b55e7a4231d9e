"""The optimizer of a run: which the settings mean here, what it moves how fast in which step, and AdamW for 16 bits."""

from __future__ import annotations

import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Adafactor

from dsr1_tune.config import AlignRun, EsftRun, FullRun, LoraRun, QloraRun, Schedule, TuneRun
from dsr1_tune.errors import ConfigError

_BETAS, _EPS = (0.9, 0.999), 1e-8
_NO_DECAY = ("bias", "norm", "magnitude")
Rounding = Literal["stochastic", "nearest"]
# Float32 copies are made of so many numbers at a time, however large the parameter.
_PIECE = 2**24


def check_optimizer(schedule: Schedule, device: torch.device) -> None:
    """Refuse an optimizer that `device` has not, before anything is loaded. Raises ConfigError."""
    if schedule.optimizer == "paged_adamw_8bit" and device.type != "cuda":
        raise ConfigError(
            f"schedule.optimizer=paged_adamw_8bit moves its state between GPU and main memory; here is only {device}",
            hint="--set schedule.optimizer=adamw_8bit",
        )


def cosine_after_warmup(optimizer: torch.optim.Optimizer, num_warmup: int, num_steps: int) -> LambdaLR:
    """The learning rate's schedule: a linear warm-up in which no step is lost, then half a cosine."""
    # No partial, which would be a part of checkpoints.
    return LambdaLR(optimizer, lambda num_done: rate_factor(num_done, num_warmup, num_steps))


def rate_factor(num_done: int, num_warmup: int, num_steps: int) -> float:
    """The share of the peak learning rate after so many steps: 1/(W+1) to W/(W+1) in W steps of warm-up, then 1 to 0.

    transformers warms up from 0, which the first step is lost by.
    """
    if num_done < num_warmup:
        return (num_done + 1) / (num_warmup + 1)
    progress = (num_done - num_warmup) / max(num_steps - num_warmup, 1)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


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


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101) that keeps float32 state whatever the weights are, and no float32 copy of them.

    A bfloat16 weight has 8 bits: an update below 1/256 of it is rounded away, every time. Rounded stochastically (up
    with a probability equal to the part that would be cut off) it moves the weight on average as it should
    (arXiv 2010.06192). For float32 weights the numbers are torch.optim.AdamW's.

    `rounding` says how updates are rounded into 16-bit weights; "stochastic" is for bfloat16. The random numbers
    depend on torch's seed and the number of the step alone: a resumed run draws what an unbroken one would, and
    processes that hold the same weights keep them the same.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rounding: Rounding = "stochastic",
    ) -> None:
        usual = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, usual | {"rounding": rounding, "seed": torch.initial_seed() % 2**32})
        for group in self.param_groups:
            if rounding == "stochastic" and any(weight.dtype == torch.float16 for weight in group["params"]):
                raise ValueError("float16 weights cannot be rounded stochastically: hold them in bfloat16")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every weight that has a gradient."""
        with torch.enable_grad():
            loss = closure() if closure is not None else None
        draws: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = torch.zeros_like(weight, dtype=torch.float32)
                state["step"] += 1
                step = int(state["step"])
                if weight.device not in draws:
                    draws[weight.device] = _generator(weight.device, group["seed"], step)
                tensors = (weight, weight.grad, state["exp_avg"], state["exp_avg_sq"])
                for piece in _pieces(*map(_local, tensors)):
                    _update(group, step, draws[weight.device], *piece)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state, in float32: torch would round it to the weights' dtype."""
        super().load_state_dict(state_dict)
        load_exactly(self, state_dict)


def load_exactly(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Restore the tensors of an optimizer's state as they were saved; torch rounds them to the weights' dtype."""
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, weight in zip(numbers, weights, strict=True):
        for name, saved in state_dict["state"].get(number, {}).items():
            if isinstance(saved, Tensor) and name != "step":
                optimizer.state[weight][name] = saved.to(weight.device, copy=True)


def _generator(device: torch.device, seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, the same whenever it is taken."""
    # Mixed, as a CPU's generator takes 32 bits of a seed and near ones must not give the same numbers.
    mixed = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(mixed, "little"))


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is shared out; the same storage."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of at most about _PIECE numbers each, so that temporary copies stay small."""
    numel, length = tensors[0].numel(), tensors[0].shape[0] if tensors[0].dim() else 1
    if numel <= _PIECE or length == 1:
        yield tensors
        return
    rows = max(1, length * _PIECE // numel)
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)


def _update(group: dict[str, Any], step: int, generator: torch.Generator, *tensors: Tensor) -> None:
    """AdamW's formulas in the order in which torch computes them, in float32."""
    weight, gradient, mean, square = tensors
    beta1, beta2 = group["betas"]
    gradient = gradient.to(torch.float32)
    exact = weight.to(torch.float32)  # the weight itself if it is float32
    exact.mul_(1 - group["lr"] * group["weight_decay"])
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    step_size = group["lr"] / (1 - beta1**step)
    root = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    exact.addcdiv_(mean, root, value=-step_size)
    if weight.dtype == torch.float32:
        return
    if group["rounding"] == "stochastic":
        exact = round_to_bfloat16(exact, generator)
    weight.copy_(exact)


def round_to_bfloat16(exact: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 rounded up or down to a bfloat16 neighbour at random, right on average; infinities and NaN stay."""
    noise = torch.randint(0, 2**16, exact.shape, dtype=torch.int32, device=exact.device, generator=generator)
    # bfloat16 is float32 without its lower 16 bits: what is cut off says how probable a carry is.
    bits = (exact.view(torch.int32) + noise) & -(2**16)
    return torch.where(exact.isfinite(), bits.view(torch.float32), exact).to(torch.bfloat16)
