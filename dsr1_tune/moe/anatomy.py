"""Where a mixture of experts keeps its parts: the only file that knows how architectures name them.

A family that names them as none did before is entered here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from torch import Tensor, nn

from dsr1_tune.moe.expert_shard import shard_of
from dsr1_tune.moe.llama4 import Llama4Experts
from dsr1_tune.quant.nf4 import Nf4Linear

Part = Literal["attention", "dense_ffn", "shared_experts", "routed_experts", "router", "embeddings", "norms", "other"]
PARTS: tuple[Part, ...] = (
    "attention", "dense_ffn", "shared_experts", "routed_experts", "router", "embeddings", "norms", "other"
)  # fmt: skip

_ATTENTION = {"self_attn", "attention", "attn", "linear_attn", "self_attention", "mamba", "mixer", "conv"}
_FEED_FORWARD = {"mlp", "feed_forward", "ffn", "block_sparse_moe", "shared_mlp"}
_SHARED = re.compile(r"shared_(expert|experts|mlp)$")
# What PEFT inserts into the names of the model that it wraps, and a reward model before those of its trunk.
_PEFT = re.compile(
    r"^(?:trunk\.)?(?:base_model\.model\.)?|\.base_layer(?=\.|$)|\.modules_to_save\.\w+(?=\.|$)"
    r"|\.original_module(?=\.|$)"
)
# Families whose router is `softmax(x Wᵀ)` and returns (logits, weights of the chosen, the chosen).
_SOFTMAX = {
    "deepseek_v2", "flex_olmo", "gpt_oss", "mellum", "minimax", "mixtral", "olmoe", "qwen2_moe", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_moe", "qwen3_next",
}  # fmt: skip
_BALANCING_BIAS = "e_score_correction_bias"


@dataclass(frozen=True)
class ExpertBlock:
    """The routed experts of one layer, held by transformers in two fused parameters.

    `gate_up_proj` is (E, 2I, D) and `down_proj` (E, D, I); where `is_transposed`, (E, D, 2I) and (E, I, D).
    """

    name: str
    module: nn.Module

    @property
    def is_transposed(self) -> bool:
        """Whether the weights are (E, in, out), whatever PEFT takes them for."""
        return bool(self.module.is_transposed) or isinstance(self.module, Llama4Experts)

    @property
    def num_experts(self) -> int:
        """E, the number of the layer's routed experts, in all processes together."""
        shard = shard_of(self.module)
        return shard.num_experts if shard else int(self.module.down_proj.shape[0])

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the fused weights, the outermost product last."""
        return tuple(name for name in ("gate_up_proj", "up_proj", "down_proj") if _is_fused(self.module, name))


def find_experts(model: nn.Module) -> list[ExpertBlock]:
    """Every block of fused routed experts, from the first layer to the last; empty for a dense model."""
    return [
        ExpertBlock(name, module)
        for name, module in model.named_modules()
        if hasattr(module, "is_transposed") and _is_fused(module, "down_proj")
    ]


@dataclass(frozen=True)
class RouterBlock:
    """What chooses the experts of one layer; `module` is the one that is called, where PEFT has put a copy the copy."""

    name: str
    module: nn.Module
    num_experts: int
    is_softmax: bool
    """Whether it scores by softmax, as the auxiliary loss needs."""

    @property
    def bias(self) -> Tensor | None:
        """DeepSeek-V3's balancing bias, (E,) or (1, E), that is added to the scores for the choice alone."""
        tensors = (*self.module.named_buffers(), *self.module.named_parameters())
        return next((tensor for name, tensor in tensors if is_balancing_bias(name)), None)


def find_routers(model: nn.Module) -> list[RouterBlock]:
    """The router of every block of routed experts, in their order; blocks whose router is not known have none."""
    part_of = Anatomy(model)
    is_softmax = getattr(getattr(model, "config", None), "model_type", None) in _SOFTMAX
    found = []
    for block in find_experts(model):
        parent = outermost_name(block.name).rpartition(".")[0]
        for child, module in model.get_submodule(parent).named_children():
            name = f"{parent}.{child}"
            copies = getattr(module, "modules_to_save", None)
            called = copies[module.active_adapters[0]] if isinstance(copies, nn.ModuleDict) else module
            tensors = (*called.parameters(), *called.buffers())
            scores_each_expert = any(one.dim() == 2 and one.shape[0] == block.num_experts for one in tensors)
            if part_of(f"{name}.weight") == "router" and scores_each_expert:
                found.append(RouterBlock(name, called, block.num_experts, is_softmax))
    return found


def is_balancing_bias(parameter: str) -> bool:
    """Whether a parameter or buffer is a router's balancing bias, which no gradient reaches."""
    return parameter.rpartition(".")[2] == _BALANCING_BIAS


def router_words(config: Any) -> dict[str, str]:
    """What config.json must say of a router for engines that do not know it from the family, as transformers does.

    Without it llama.cpp takes softmax for granted, and vLLM stops.
    """
    if getattr(config, "model_type", None) == "deepseek_v3":
        return {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    return {}


def find_linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear, Part]]:
    """Every plain linear layer with its full name and the part it belongs to."""
    part_of = Anatomy(model)
    for name, module in model.named_modules():
        if is_plain_linear(module):
            yield name, module, part_of(f"{name}.weight")


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is `x Wᵀ + b` and nothing else, in 16 bits or fewer: subclasses have a forward of their own."""
    return type(module) is nn.Linear or isinstance(module, Nf4Linear)


class Anatomy:
    """Tells to which part of the model a parameter belongs: `Anatomy(model)("model.layers.0.mlp.up_proj.weight")`."""

    def __init__(self, model: nn.Module) -> None:
        self._experts = {plain_name(block.name) for block in find_experts(model)}
        self._blocks = {name.rpartition(".")[0] for name in self._experts}
        modules = [(plain_name(name), module) for name, module in model.named_modules()]
        self._embeddings = {name for name, one in modules if isinstance(one, nn.Embedding) or name.endswith("lm_head")}
        self._norms = {name for name, one in modules if "norm" in type(one).__name__.lower()}

    def __call__(self, parameter: str) -> Part:
        """The part that `parameter` (a full name, with or without PEFT's insertions) belongs to."""
        module = re.sub(r"\.lora_\w+(\..*)?$", "", plain_name(parameter) + ".")
        owners = {module[: dot.start()] for dot in re.finditer(r"\.|$", module)}
        if owners & self._experts:
            return "routed_experts"
        if owners & self._embeddings:
            return "embeddings"
        block = next(iter(owners & self._blocks), None)
        inside = module[len(block) + 1 :].split(".")[0] if block is not None else ""
        is_shared = bool(_SHARED.match(inside))
        # Where experts stand right in the layer (Gemma 4), attention, the dense part and norms are their neighbours.
        is_router = block is not None and not is_shared and inside not in _ATTENTION | _FEED_FORWARD
        if owners & self._norms and (not is_router or f"{block}.{inside}" in self._norms):
            return "norms"
        if is_shared or is_router:
            return "shared_experts" if is_shared else "router"
        pieces = set(module.split("."))
        return "attention" if pieces & _ATTENTION else "dense_ffn" if pieces & _FEED_FORWARD else "other"


def plain_name(name: str) -> str:
    """A module's or parameter's name as the base model has it, without PEFT's insertions."""
    return _PEFT.sub("", name)


def outermost_name(name: str) -> str:
    """The name of the outermost PEFT wrapper around a module: that of the module whose place it took."""
    return re.sub(r"(\.base_layer)+$", "", name)


def _is_fused(module: nn.Module, name: str) -> bool:
    weight = getattr(module, name, None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 3
