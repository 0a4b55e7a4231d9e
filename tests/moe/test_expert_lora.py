"""LoRA by grouped products is PEFT's LoRA: same numbers, same gradients, same files, nothing large in between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, GptOssConfig, Qwen3MoeConfig
from transformers.integrations.moe import use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from dsr1_tune.moe import expert_lora
from dsr1_tune.moe.expert_lora import GroupedExpertLora, LinearParamLora, use_grouped_products
from dsr1_tune.moe.expert_rows import RoutedRows

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss"]
FUSED = ("gate_up_proj", "down_proj")


def difference(got: Tensor, want: Tensor) -> float:
    """The norm of the difference over the norm of what is wanted."""
    assert got.shape == want.shape
    got, want = got.detach().double(), want.detach().double()
    return float((got - want).norm() / want.norm().clamp_min(1e-300))


# --- one layer of experts against the plain formula ------------------------------------------------------------------


class Layer(nn.Module):
    """Experts on their own, so that a test routes as it likes."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        return self.experts(x_TD, index_TK, weight_TK)


@use_experts_implementation(has_gate=False, has_bias=True)
class UngatedExperts(nn.Module):
    """Experts with one projection up, an activation, and biases."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        E, D, I = config.num_experts, config.hidden_size, config.moe_intermediate_size  # noqa: E741
        self.up_proj, self.up_proj_bias = nn.Parameter(torch.empty(E, I, D)), nn.Parameter(torch.empty(E, I))
        self.down_proj, self.down_proj_bias = nn.Parameter(torch.empty(E, D, I)), nn.Parameter(torch.empty(E, D))
        self.act_fn = functional.gelu

    def forward(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
        raise NotImplementedError


@use_experts_implementation(has_post_expert_norm=True)
class NormedExperts(Qwen3MoeExperts):
    """Experts with a norm behind each of them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.post_expert_norm = nn.RMSNorm(config.hidden_size)


KINDS: dict[str, type[nn.Module]] = {
    "gated": Qwen3MoeExperts,
    "interleaved": GptOssExperts,
    "ungated": UngatedExperts,
    "normed": NormedExperts,
}


def make_layer(
    kind: str = "gated",
    num_experts: int = 4,
    width: int = 16,
    inner: int = 8,
    rank: int = 4,
    targets: tuple[str, ...] = FUSED,
    dtype: torch.dtype = torch.float64,
    implementation: str = "eager",
    **lora: Any,
) -> Layer:
    """Random frozen experts with stock PEFT's random LoRA on them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "experts_implementation": implementation}
    if kind == "interleaved":
        config: Any = GptOssConfig(num_local_experts=num_experts, intermediate_size=inner, **sizes)
    else:
        config = Qwen3MoeConfig(num_experts=num_experts, moe_intermediate_size=inner, **sizes)
    layer = Layer(KINDS[kind](config)).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_(False)
    config = LoraConfig(r=rank, target_modules=[], target_parameters=[f"experts.{name}" for name in targets], **lora)
    inject_adapter_in_model(config, layer)
    randomize_lora(layer)
    return layer


def randomize_lora(model: nn.Module) -> None:
    """LoRA's B starts at zero; here it must show."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.3)


def switched(model: Any) -> Any:
    """A copy of the model with its LoRA applied by grouped products."""
    ours = copy.deepcopy(model)
    assert use_grouped_products(ours)
    return ours


@dataclass
class Gradients:
    """What a layer gives for a routing: its output, and gradients by name."""

    output: Tensor
    by_name: dict[str, Tensor]

    def differences(self, want: Gradients) -> dict[str, float]:
        """By name; gradients that are not there count as missing."""
        assert self.by_name.keys() == want.by_name.keys()
        found = {name: difference(self.by_name[name], gradient) for name, gradient in want.by_name.items()}
        return {"output": difference(self.output, want.output), **found}


def adapters_of(layer: nn.Module) -> dict[str, ParamWrapper]:
    """PEFT's wrappers by the weight they adapt."""
    return {module.parameter_name: module for module in layer.modules() if isinstance(module, ParamWrapper)}


def through_layer(layer: Layer, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Gradients:
    """One step through the layer itself."""
    x_TD, weight_TK = leaf(x_TD), leaf(weight_TK)
    layer.zero_grad()
    output_TD = layer(x_TD, index_TK, weight_TK)
    assert output_TD.dtype == x_TD.dtype
    output_TD.backward(seed_like(output_TD))
    gradients = {"x": x_TD.grad, "weight": weight_TK.grad}
    for name, wrapper in adapters_of(layer).items():
        gradients[f"{name}.A"] = wrapper.lora_A["default"].weight.grad
        gradients[f"{name}.B"] = wrapper.lora_B["default"].weight.grad
    return Gradients(output_TD.detach(), gradients)


def leaf(tensor: Tensor) -> Tensor:
    """A copy that gathers gradients."""
    return tensor.detach().clone().requires_grad_()


def seed_like(output: Tensor) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output)


def through_formula(layer: Layer, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor, scale: float) -> Gradients:
    """The same in float64 as one writes it on paper: token by token, expert by expert, with W + s·B·A formed."""
    experts = layer.experts.get_base_layer()
    num_experts = len(experts.down_proj)
    x_TD, weight_TK = leaf(x_TD.double()), leaf(weight_TK.double())
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, wrapper in adapters_of(layer).items():
        a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        factors[name] = (leaf(a.double()), leaf(b.double()))

    def weight_of(name: str, expert: int) -> Tensor:
        matrix = getattr(experts, name)[expert].detach().double()
        matrix = matrix.T if isinstance(experts, GptOssExperts) else matrix
        if name in factors:
            a, b = factors[name]
            # PEFT packs A expert by expert, and B rank by rank.
            a_ERD, b_ORE = a.view(num_experts, -1, a.shape[1]), b.view(b.shape[0], -1, num_experts)
            matrix = matrix + scale * b_ORE[:, :, expert] @ a_ERD[expert]
        return matrix

    def bias_of(name: str, expert: int) -> Tensor | float:
        bias = getattr(experts, f"{name}_bias", None)
        return 0.0 if bias is None else bias[expert].double()

    outputs = []
    for x_D, index_K, weight_K in zip(x_TD, index_TK.tolist(), weight_TK, strict=True):
        output_D = torch.zeros_like(x_D)
        for expert, weight in zip(index_K, weight_K, strict=True):
            if isinstance(experts, UngatedExperts):
                inner_I = functional.gelu(weight_of("up_proj", expert) @ x_D + bias_of("up_proj", expert))
            else:
                g = weight_of("gate_up_proj", expert) @ x_D + bias_of("gate_up_proj", expert)
                if isinstance(experts, GptOssExperts):
                    gate, up = g[0::2].clamp(max=7.0), g[1::2].clamp(-7.0, 7.0)
                    inner_I = (up + 1) * gate * torch.sigmoid(1.702 * gate)
                else:
                    gate, up = g[: len(g) // 2], g[len(g) // 2 :]
                    inner_I = gate * torch.sigmoid(gate) * up
            output_D = output_D + weight * (weight_of("down_proj", expert) @ inner_I + bias_of("down_proj", expert))
        outputs.append(output_D)
    output_TD = torch.stack(outputs)
    output_TD.backward(seed_like(output_TD))
    gradients = {"x": x_TD.grad, "weight": weight_TK.grad}
    for name, (a, b) in factors.items():
        # A factor that no token met has no gradient in a graph built token by token.
        gradients[f"{name}.A"] = torch.zeros_like(a) if a.grad is None else a.grad
        gradients[f"{name}.B"] = torch.zeros_like(b) if b.grad is None else b.grad
    return Gradients(output_TD.detach(), gradients)


# Routings: (T, K) expert numbers out of E = 4, unless said otherwise.


def all_to_one() -> Tensor:
    return torch.full((21, 1), 2)


def one_idle() -> Tensor:
    return torch.tensor([[0, 3], [3, 0], [1, 3], [0, 1], [3, 1]])


def first_and_last_idle() -> Tensor:
    return torch.tensor([[1, 2], [2, 1], [1, 2]])


def one_token() -> Tensor:
    return torch.tensor([[3, 1]])


def one_token_one_expert() -> Tensor:
    return torch.tensor([[2]])


def one_expert_each() -> Tensor:
    return torch.tensor([0, 2, 1, 3, 3, 2, 0, 0, 1])[:, None]


def balanced() -> Tensor:
    """Each expert has the same number of rows and one tile."""
    return torch.arange(12)[:, None].add(torch.tensor([0, 1])) % 4


def as_many_tiles_as_experts() -> Tensor:
    """Four tiles for four experts, and yet one expert has two of them and one has none."""
    return torch.cat([torch.full((12,), 0), torch.tensor([2, 3, 2])])[:, None]


def many_tiles() -> Tensor:
    """By Zipf's law, several tiles of the largest size for the first expert."""
    return zipf(140, num_experts=4, num_chosen=2)


def all_of_them() -> Tensor:
    """Every expert for every token, in another order each time."""
    return torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(11)])


def zipf(num_tokens: int, num_experts: int, num_chosen: int, seed: int = 0) -> Tensor:
    """Distinct experts for each token, the first the most popular."""
    shares = 1.0 / torch.arange(1, num_experts + 1).double()
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(shares.expand(num_tokens, -1), num_chosen, generator=generator)


ROUTINGS = [
    all_to_one, one_idle, first_and_last_idle, one_token, one_token_one_expert, one_expert_each, balanced,
    as_many_tiles_as_experts, many_tiles, all_of_them,
]  # fmt: skip


def inputs(index_TK: Tensor, width: int = 16, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Hidden states and gate weights for a routing."""
    generator = torch.Generator().manual_seed(3)
    x_TD = torch.randn(len(index_TK), width, generator=generator, dtype=torch.float64)
    return x_TD.to(dtype), torch.rand(index_TK.shape, generator=generator, dtype=torch.float64).to(dtype)


def check(layer: Layer, index_TK: Tensor, scale: float, tolerance: float, elsewhere: bool = False) -> None:
    """The layer, its LoRA applied by grouped products, equals the formula in output and every gradient."""
    x_TD, weight_TK = inputs(index_TK, dtype=next(layer.parameters()).dtype)
    want = through_formula(layer, x_TD, index_TK, weight_TK, scale)
    got = through_layer(switched(layer), x_TD, index_TK.as_subclass(Elsewhere) if elsewhere else index_TK, weight_TK)
    differences = got.differences(want)
    assert max(differences.values()) < tolerance, differences


class Elsewhere(Tensor):
    """Expert numbers that claim to lie on a GPU, so that the GPU's way of grouping runs on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return torch.device("cuda")


@pytest.fixture
def demanding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grouped products with a GPU's demands on strides and, for experts without rows, a GPU's garbage; the calls."""
    calls: list[int] = []
    product = functional.grouped_mm

    def grouped_mm(a: Tensor, b: Tensor, *, offs: Tensor) -> Tensor:
        for matrix in (a, b):
            strides = sorted(matrix.stride()[-2:])
            assert strides[0] == 1
            assert strides[1] * matrix.element_size() % 16 == 0, "strides should be multiple of 16 bytes"
            assert matrix.data_ptr() % 16 == 0
        assert a.dtype == b.dtype
        assert offs.dtype == torch.int32
        out = product(a, b, offs=offs)
        if a.dim() == b.dim() == 2:
            out[offs.diff(prepend=offs.new_zeros(1)) == 0] = float("nan")
        calls.append(a.shape[0])
        return out

    monkeypatch.setattr(functional, "grouped_mm", grouped_mm)
    return calls


@pytest.mark.parametrize("kind", ["gated", "interleaved", "ungated"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_expert_lora_equals_the_formula(kind: str, routing: Callable[[], Tensor]) -> None:
    targets = ("up_proj", "down_proj") if kind == "ungated" else FUSED
    check(make_layer(kind, targets=targets, lora_alpha=6), routing(), scale=6 / 4, tolerance=1e-12)


@pytest.mark.parametrize("kind", ["gated", "interleaved"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_expert_lora_equals_the_formula_as_a_gpu_groups_it(
    demanding: list[int], kind: str, routing: Callable[[], Tensor]
) -> None:
    layer = make_layer(kind, lora_alpha=6, dtype=torch.float32)
    check(layer, routing(), scale=6 / 4, tolerance=1e-5, elsewhere=True)
    assert demanding


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "num_chosen"), [(60, 16, 4), (9, 16, 3), (200, 5, 1), (33, 24, 8)]
)
def test_expert_lora_of_uneven_loads(num_tokens: int, num_experts: int, num_chosen: int) -> None:
    layer = make_layer(num_experts=num_experts, lora_alpha=4)
    check(layer, zipf(num_tokens, num_experts, num_chosen), scale=1.0, tolerance=1e-12)


def test_the_routings_reach_every_kind_of_tiling() -> None:
    def tiles(index_TK: Tensor) -> tuple[int, list[int]]:
        rows = RoutedRows.sort(index_TK, num_experts=4)
        return rows.tile, torch.bincount(rows.expert_N, minlength=4).tolist()

    assert tiles(balanced()) == (8, [1, 1, 1, 1])
    assert tiles(as_many_tiles_as_experts()) == (8, [2, 0, 1, 1])
    assert tiles(all_to_one()) == (8, [0, 0, 3, 0])
    tile, counts = tiles(many_tiles())
    assert tile == 64
    assert max(counts) > 1


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("targets", [("gate_up_proj",), ("down_proj",)])
def test_expert_lora_of_one_projection(targets: tuple[str, ...], elsewhere: bool) -> None:
    dtype, tolerance = (torch.float32, 1e-5) if elsewhere else (torch.float64, 1e-12)
    for kind in ("gated", "interleaved"):
        check(make_layer(kind, targets=targets, lora_alpha=8, dtype=dtype), one_idle(), 2.0, tolerance, elsewhere)


def test_expert_lora_scaled_by_the_root_of_the_rank() -> None:
    layer = make_layer(lora_alpha=6, use_rslora=True)
    check(layer, one_idle(), scale=6 / 4**0.5, tolerance=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8, 12])
def test_expert_lora_of_any_rank(demanding: list[int], rank: int) -> None:
    check(make_layer(rank=rank, lora_alpha=rank), one_idle(), scale=1.0, tolerance=1e-12)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        layer = make_layer(rank=rank, lora_alpha=rank, dtype=dtype)
        check(layer, one_idle(), scale=1.0, tolerance=tolerance, elsewhere=True)


def test_expert_lora_without_tokens_has_a_gradient_of_zero(demanding: list[int]) -> None:
    for elsewhere in (False, True):
        layer = switched(make_layer(dtype=torch.float32))
        x_TD, weight_TK = inputs(one_idle(), dtype=torch.float32)
        index_TK = one_idle().as_subclass(Elsewhere) if elsewhere else one_idle()
        gradients = through_layer(layer, x_TD, index_TK, weight_TK).by_name
        for name in FUSED:
            a_ERD, b_ORE = gradients[f"{name}.A"].view(4, 4, -1), gradients[f"{name}.B"].view(-1, 4, 4)
            assert [bool(a_RD.any()) for a_RD in a_ERD] == [True, True, False, True]
            assert [bool(b_OR.any()) for b_OR in b_ORE.unbind(2)] == [True, True, False, True]


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("kind", ["gated", "interleaved"])
def test_expert_lora_in_bfloat16_rounds_no_worse_than_peft(kind: str, elsewhere: bool) -> None:
    index_TK = zipf(40, num_experts=4, num_chosen=2)
    layer = make_layer(kind, width=32, inner=32, dtype=torch.bfloat16)
    x_TD, weight_TK = inputs(index_TK, 32, torch.bfloat16)
    want = through_formula(layer, x_TD, index_TK, weight_TK, scale=8 / 4)
    peft = through_layer(layer, x_TD, index_TK, weight_TK).differences(want)
    index_TK = index_TK.as_subclass(Elsewhere) if elsewhere else index_TK
    ours = through_layer(switched(layer), x_TD, index_TK, weight_TK).differences(want)
    assert max(ours.values()) < 2e-2, ours
    assert all(ours[name] < 1.5 * peft[name] for name in ours), (ours, peft)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("kind", ["gated", "interleaved"])
def test_expert_lora_equals_peft(kind: str, implementation: str) -> None:
    index_TK = zipf(150, num_experts=8, num_chosen=3)
    layer = make_layer(kind, num_experts=8, dtype=torch.float32, implementation=implementation)
    x_TD, weight_TK = inputs(index_TK, dtype=torch.float32)
    want = through_layer(layer, x_TD, index_TK, weight_TK)
    differences = through_layer(switched(layer), x_TD, index_TK, weight_TK).differences(want)
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("kind", ["gated", "interleaved"])
def test_expert_lora_gradients_pass_the_numerical_check(kind: str) -> None:
    layer = make_layer(kind, num_experts=3, width=4, inner=3, rank=2)
    experts = layer.experts.get_base_layer()
    index_TK = torch.tensor([[0, 2], [2, 0], [2, 0]])
    x_TD, weight_TK = inputs(index_TK, width=4)
    adapters = adapters_of(layer)
    factors = [adapters[name].lora_A["default"].weight for name in FUSED]
    factors += [adapters[name].lora_B["default"].weight for name in FUSED]

    def output(x_TD: Tensor, weight_TK: Tensor, up_a: Tensor, down_a: Tensor, up_b: Tensor, down_b: Tensor) -> Tensor:
        updates = {
            "gate_up_proj": expert_lora.PackedLora(up_a, up_b, 0.7),
            "down_proj": expert_lora.PackedLora(down_a, down_b, 1.3),
        }
        return expert_lora.apply_experts(experts, x_TD, index_TK, weight_TK, updates)

    assert torch.autograd.gradcheck(output, [leaf(tensor) for tensor in (x_TD, weight_TK, *factors)])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_expert_lora_reads_no_memory_before_it_is_written(elsewhere: bool) -> None:
    layer = make_layer("interleaved", lora_alpha=8, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        check(layer, as_many_tiles_as_experts(), scale=2.0, tolerance=1e-5, elsewhere=elsewhere)
    finally:
        torch.use_deterministic_algorithms(False)


def test_input_and_gate_weights_need_no_gradients() -> None:
    layer = make_layer()
    x_TD, weight_TK = inputs(one_idle())
    want = through_formula(layer, x_TD, one_idle(), weight_TK, scale=8 / 4).by_name
    ours = switched(layer)
    ours(x_TD, one_idle(), weight_TK).backward(seed_like(x_TD))
    for name, wrapper in adapters_of(ours).items():
        assert difference(wrapper.lora_A["default"].weight.grad, want[f"{name}.A"]) < 1e-12
        assert difference(wrapper.lora_B["default"].weight.grad, want[f"{name}.B"]) < 1e-12


def test_expert_lora_leaves_its_inputs_as_they_were() -> None:
    layer = switched(make_layer("interleaved"))
    index_TK = one_idle()
    x_TD, weight_TK = inputs(index_TK)
    before = [tensor.clone() for tensor in (x_TD, index_TK, weight_TK, *layer.parameters())]
    through_layer(layer, x_TD, index_TK, weight_TK)
    assert all(map(torch.equal, (x_TD, index_TK, weight_TK, *layer.parameters()), before))


def test_experts_with_a_norm_behind_them_are_left_to_peft() -> None:
    layer = make_layer("normed", implementation="batched_mm")
    before = copy.deepcopy(layer)
    assert use_grouped_products(layer) == 0
    x_TD, weight_TK = inputs(one_idle())
    assert torch.equal(layer(x_TD, one_idle(), weight_TK), before(x_TD, one_idle(), weight_TK))


def test_experts_that_are_trained_themselves_get_their_gradients() -> None:
    layer = make_layer()
    layer.experts.get_base_layer().down_proj.requires_grad_()
    ours = switched(layer)
    x_TD, weight_TK = inputs(one_idle())
    want, got = (through_layer(each, x_TD, one_idle(), weight_TK) for each in (layer, ours))
    assert max(got.differences(want).values()) < 1e-12
    weights = [each.experts.get_base_layer().down_proj for each in (ours, layer)]
    assert weights[1].grad.any()
    assert torch.equal(weights[0].grad, weights[1].grad)


# --- linear weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bias", "rslora"), [(False, False), (True, False), (False, True)])
def test_a_linear_weight_equals_the_formula(bias: bool, rslora: bool) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"linear": nn.Linear(6, 5, bias=bias)}).double()
    config = LoraConfig(r=3, lora_alpha=7, use_rslora=rslora, target_modules=[], target_parameters=["linear.weight"])
    inject_adapter_in_model(config, model)
    randomize_lora(model)
    assert use_grouped_products(model) == 1
    wrapper = model["linear"]
    assert isinstance(wrapper, LinearParamLora)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
    leaves = (x, a, b)
    scale = 7 / 3**0.5 if rslora else 7 / 3
    base = wrapper.get_base_layer()
    want = functional.linear(x, base.weight + scale * b @ a, base.bias)
    got = wrapper(x)
    assert difference(got, want) < 1e-12
    seed = torch.randn_like(want)
    gradients = (torch.autograd.grad(output, leaves, seed) for output in (got, want))
    for ours, plain in zip(*gradients, strict=True):
        assert difference(ours, plain) < 1e-12


# --- whole models against stock PEFT ---------------------------------------------------------------------------------

IDS = torch.randint(2, 258, (2, 17), generator=torch.Generator().manual_seed(4))


def lora_config(family: str, **changes: Any) -> LoraConfig:
    """LoRA on attention, routed experts and, where there are any, shared experts, in PEFT's own terms."""
    parameters = [f"experts.{name}" for name in FUSED]
    if family.startswith("deepseek"):
        parameters += [f"shared_experts.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["o_proj"], "target_parameters": parameters}
    return LoraConfig(task_type="CAUSAL_LM", **(settings | changes))


def peft_model(folder: Path, config: LoraConfig, dtype: torch.dtype = torch.float32) -> PeftModel:
    """The model of the folder with stock PEFT's random LoRA."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), config)
    randomize_lora(model)
    return model.eval()


@pytest.fixture
def stock(tiny_model: Any) -> PeftModel:
    """A DeepSeek-V3 with stock PEFT's LoRA on attention, shared and routed experts."""
    return peft_model(tiny_model("deepseek_v3"), lora_config("deepseek_v3"))


def step(model: nn.Module, autocast: bool = False) -> dict[str, Tensor]:
    """Logits and the gradients of the embedded text and of all adapters."""
    model.zero_grad()
    embedded = model.get_input_embeddings()(IDS.to(model.device)).detach().requires_grad_()
    with torch.autocast(model.device.type, torch.bfloat16) if autocast else nullcontext():
        logits = model(inputs_embeds=embedded).logits
    logits.float().backward(seed_like(logits.float()))
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {"logits": logits.detach(), "embedded": embedded.grad, **gradients}


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    return model(IDS).logits


def same_step(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    differences = {name: difference(got[name], want[name]) for name in want}
    assert max(differences.values()) < tolerance, differences


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_equals_stock_peft(tiny_model: Any, family: str) -> None:
    stock = peft_model(tiny_model(family), lora_config(family))
    ours = switched(stock)
    assert any(isinstance(module, GroupedExpertLora) for module in ours.modules())
    want = step(stock)
    # Attention, fused experts and shared experts, each with A and B, where this family has them.
    assert len(want) - 2 == (2 * (2 + 2 + 3) if family.startswith("deepseek") else 2 * (2 + 4))
    assert all(gradient.any() for gradient in want.values())
    same_step(step(ours), want, tolerance=1e-5)


@pytest.mark.parametrize("targets", [("gate_up_proj",), ("down_proj",)])
def test_a_model_with_one_projection_adapted_equals_stock_peft(tiny_model: Any, targets: tuple[str, ...]) -> None:
    config = lora_config("gpt_oss", target_parameters=[f"experts.{name}" for name in targets])
    stock = peft_model(tiny_model("gpt_oss"), config)
    same_step(step(switched(stock)), step(stock), tolerance=1e-5)


def test_bfloat16_weights_with_float32_adapters_equal_stock_peft(tiny_model: Any) -> None:
    stock = peft_model(tiny_model("deepseek_v3"), lora_config("deepseek_v3"), torch.bfloat16)
    assert {p.dtype for name, p in stock.named_parameters() if ".lora_" in name} == {torch.float32}
    for autocast in (False, True):
        got = step(switched(stock), autocast)
        assert got["logits"].dtype == torch.bfloat16
        same_step(got, step(stock, autocast), tolerance=4e-2)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_autocast_leaves_float32_experts_in_float32(tiny_model: Any, family: str) -> None:
    stock = peft_model(tiny_model(family), lora_config(family))
    same_step(step(switched(stock), autocast=True), step(stock, autocast=True), tolerance=5e-3)


def test_gradient_checkpointing_gives_the_same_gradients(stock: PeftModel) -> None:
    ours = switched(stock)
    want = step(ours)
    recomputed = []
    block = ours.get_base_model().model.layers[1].mlp
    block.register_forward_pre_hook(lambda *_: recomputed.append(1))
    ours.train()
    ours.gradient_checkpointing_enable()
    same_step(step(ours), want, tolerance=1e-6)
    assert len(recomputed) == 2


def test_switching_counts_the_layers_and_switches_once(stock: PeftModel) -> None:
    names = [name for name, _ in stock.named_modules()]
    assert use_grouped_products(stock) == 1 + 3
    kinds = [type(module) for module in stock.modules()]
    assert kinds.count(GroupedExpertLora) == 1
    assert kinds.count(LinearParamLora) == 3
    assert use_grouped_products(stock) == 0
    assert [type(module) for module in stock.modules()] == kinds
    assert [name for name, _ in stock.named_modules()] == names


def test_a_model_without_lora_on_parameters_has_nothing_to_switch(tiny_model: Any) -> None:
    dense = peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    assert use_grouped_products(dense) == 0


def test_a_disabled_adapter_gives_the_base(stock: PeftModel) -> None:
    ours = switched(stock)
    base = AutoModelForCausalLM.from_pretrained(stock.peft_config["default"].base_model_name_or_path)
    with ours.disable_adapter():
        assert torch.equal(logits_of(ours), logits_of(base))
    assert difference(logits_of(ours), logits_of(stock)) < 1e-5
    assert difference(logits_of(ours), logits_of(base)) > 0.1


def test_merged_and_unmerged_it_is_the_same_model(stock: PeftModel) -> None:
    ours = switched(stock)
    want = logits_of(ours)
    ours.merge_adapter()
    assert ours.get_base_model().model.layers[1].mlp.experts.merged
    assert difference(logits_of(ours), want) < 1e-5
    ours.unmerge_adapter()
    assert difference(logits_of(ours), want) < 1e-5
    same_step(step(ours), step(stock), tolerance=1e-4)
    merged = ours.merge_and_unload()
    assert not any(isinstance(module, ParamWrapper) for module in merged.modules())
    assert difference(logits_of(merged), want) < 1e-5


def with_second_adapter(model: PeftModel) -> PeftModel:
    """The model with another adapter, of another rank and scale, beside the first."""
    model.add_adapter("second", lora_config("deepseek_v3", r=3, lora_alpha=9))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".second." in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("active", [["default"], ["second"], ["default", "second"]])
def test_expert_lora_of_several_adapters(stock: PeftModel, active: list[str]) -> None:
    ours = switched(with_second_adapter(stock))
    for model in (stock, ours):
        model.base_model.set_adapter(active)
    same_step(step(ours), step(stock), tolerance=1e-5)


@pytest.mark.parametrize("active", ["default", "second"])
def test_an_adapter_can_be_added_after_switching(stock: PeftModel, active: str) -> None:
    ours = with_second_adapter(switched(stock))
    stock = with_second_adapter(stock)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    for model in (stock, ours):
        model.set_adapter(active)
    assert difference(logits_of(ours), logits_of(stock)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_lora_state_dicts_have_stock_peft_keys(tiny_model: Any, family: str) -> None:
    stock = peft_model(tiny_model(family), lora_config(family))
    ours = switched(stock)
    assert list(ours.state_dict()) == list(stock.state_dict())
    got, want = get_peft_model_state_dict(ours), get_peft_model_state_dict(stock)
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_travel_both_ways(tiny_model: Any, tmp_path: Path, family: str) -> None:
    folder = tiny_model(family)
    stock = peft_model(folder, lora_config(family))
    ours = switched(stock)
    want = logits_of(stock)
    stock.save_pretrained(tmp_path / "stock")
    ours.save_pretrained(tmp_path / "ours")

    from_ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "ours").eval()
    assert not any(isinstance(module, GroupedExpertLora | LinearParamLora) for module in from_ours.modules())
    assert torch.equal(logits_of(from_ours), want)

    from_stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "stock").eval()
    assert use_grouped_products(from_stock)
    assert torch.equal(logits_of(from_stock), logits_of(ours))
    assert difference(logits_of(from_stock), want) < 1e-5


# --- the update is never formed --------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Watches every operation, the backward's too, for the largest tensor that it makes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.numel = 0
        self._known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["gated", "interleaved"])
def test_expert_lora_makes_nothing_as_large_as_the_weights(kind: str) -> None:
    E, D, I, R = 32, 32, 32, 2  # noqa: E741
    stock = make_layer(kind, num_experts=E, width=D, inner=I, rank=R, dtype=torch.float32)
    index_TK = zipf(6, num_experts=E, num_chosen=2)
    x_TD, weight_TK = inputs(index_TK, D, torch.float32)
    with Largest(stock) as of_stock:
        through_layer(stock, x_TD, index_TK, weight_TK)
    ours = switched(stock)
    with Largest(ours) as of_ours:
        through_layer(ours, x_TD, index_TK, weight_TK)
    assert of_stock.numel >= E * 2 * I * D
    assert of_ours.numel < E * I * D / 2


def test_neither_forward_nor_backward_asks_peft_for_the_update(
    stock: PeftModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the update is formed")

    ours = switched(stock)
    monkeypatch.setattr(ParamWrapper, "get_delta_factors", refuse)
    monkeypatch.setattr(ParamWrapper, "get_delta_weight", refuse)
    step(ours)
    with pytest.raises(AssertionError, match="the update is formed"):
        step(stock)


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rank", [4, 8])
@pytest.mark.parametrize("kind", ["gated", "interleaved"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_expert_lora_equals_the_formula_on_a_gpu(kind: str, rank: int, dtype: torch.dtype, tolerance: float) -> None:
    """Experts without tokens, one with many; repeated, so that the second pass meets used memory."""
    index_TK = torch.cat([zipf(100, num_experts=12, num_chosen=3), torch.full((40, 3), 2)]) + 2
    layer = make_layer(kind, num_experts=16, width=64, inner=32, rank=rank, lora_alpha=rank, dtype=dtype)
    x_TD, weight_TK = inputs(index_TK, 64, dtype)
    want = through_formula(layer, x_TD, index_TK, weight_TK, scale=1.0)
    ours = switched(layer).cuda()
    for _ in range(3):
        got = through_layer(ours, x_TD.cuda(), index_TK.cuda(), weight_TK.cuda())
        on_cpu = Gradients(got.output.cpu(), {name: gradient.cpu() for name, gradient in got.by_name.items()})
        differences = on_cpu.differences(want)
        assert max(differences.values()) < tolerance, differences
