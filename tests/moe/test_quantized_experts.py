"""Models in NF4: the same computation as on the dequantized weights, everything audited, the unknown refused."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter
from dsr1_tune.errors import ModelError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.models.weights.load_nf4 import Nf4Config
from dsr1_tune.moe import expert_lora, expert_rows
from dsr1_tune.moe.anatomy import Anatomy, find_experts
from dsr1_tune.moe.expert_lora import PackedLora
from dsr1_tune.moe.quantized_experts import audit_bits, is_in_nf4, memory_of, reserve_nf4
from dsr1_tune.quant.nf4 import Nf4, stored_weight
from tests.families import config_of, save_family

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "glm4_moe", "gpt_oss"]
IDS = torch.randint(0, 258, (2, 24), generator=torch.Generator().manual_seed(1))

Load = Callable[..., Any]


def load(folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"}, **more)


def load_nf4(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load(folder, dtype, quantization_config=Nf4Config())


def dequantized(folder: Path, held: Any, dtype: torch.dtype) -> Any:
    """A plain model with the weights that `held` stands for."""
    plain = load(folder, dtype)
    modules = dict(plain.named_modules())
    for name, module in held.named_modules():
        for weight in list(module._parameters):
            value = stored_weight(module, weight) if module._parameters[weight] is not None else None
            if isinstance(value, Nf4):
                into = modules[name]._parameters[weight]
                into.data.copy_(value.matrices(slice(None)).view_as(into))
    return plain


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if ".lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def logits_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 258).float(), IDS[:, 1:].reshape(-1))
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return logits.detach(), gradients | {"the input": embedded.grad}


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.double()).norm() / want.detach().double().norm().clamp(min=1e-12))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-3)])
def test_lora_over_4_bits_equals_lora_over_the_dequantized_weights(
    tiny_model: Any, family: str, dtype: torch.dtype, tolerance: float
) -> None:
    folder = tiny_model(family)
    held = load_nf4(folder, dtype)
    plain = dequantized(folder, held, dtype)
    models = [add_lora(model, Adapter(rank=4)) for model in (held, plain)]
    for model in models:
        randomise(model)
    (got, got_gradients), (want, want_gradients) = map(logits_and_gradients, models)
    assert relative(got, want) < tolerance
    assert got_gradients.keys() == want_gradients.keys() and len(got_gradients) > 10
    wrong = {name: relative(got_gradients[name], want) for name, want in want_gradients.items()}
    assert max(wrong.values()) < tolerance, wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_equal_stock_peft_on_the_dequantized_weights(tiny_model: Any, family: str) -> None:
    folder = tiny_model(family)
    held = load_nf4(folder)
    plain = dequantized(folder, held, torch.float32)
    fused = sorted({f"experts.{name}" for block in find_experts(plain) for name in block.parameters})
    stock = get_peft_model(plain, LoraConfig(r=4, target_modules=[], target_parameters=fused))
    ours = add_lora(held, Adapter(rank=4, alpha=8, groups=("routed_experts",)))
    for model in (ours, stock):
        randomise(model)
    (got, got_gradients), (want, want_gradients) = map(logits_and_gradients, (ours, stock))
    assert relative(got, want) < 1e-5
    assert max(relative(got_gradients[name], want) for name, want in want_gradients.items()) < 1e-5


def test_nf4_experts_compute_without_an_adapter_too(tiny_model: Any) -> None:
    folder = tiny_model("qwen3_moe")
    held = load_nf4(folder).eval()
    with torch.no_grad():
        assert relative(held(IDS).logits, dequantized(folder, held, torch.float32).eval()(IDS).logits) < 1e-5


def test_nf4_experts_have_the_same_gradients_under_checkpointing(tiny_model: Any) -> None:
    model = add_lora(load_nf4(tiny_model()), Adapter(rank=4))
    randomise(model)
    _, want = logits_and_gradients(model)
    want = {name: gradient.clone() for name, gradient in want.items()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, got = logits_and_gradients(model)
    assert max(relative(got[name], gradient) for name, gradient in want.items()) < 1e-6


@pytest.fixture(scope="module")
def nf4_experts(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[str, Any]:
    """A layer of four experts in NF4 of two families, the second with biases and its weights the other way round."""
    folder = tmp_path_factory.mktemp("experts")
    models = {
        name: load_nf4(save_family(folder / name, tiny_tokenizer, name, intermediate_size=64))
        for name in ("qwen3_moe", "gpt_oss")
    }
    return {name: find_experts(model)[0].module for name, model in models.items()}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Rows are grouped as on a GPU, and there are no others."""
    monkeypatch.setattr(expert_rows, "_is_grouped", lambda device: True)
    return monkeypatch


class Waits(TorchFunctionMode):
    """What a GPU would have to be waited for, or be sent numbers for, by name; `of` also asks below Python."""

    ASKED = ("tolist", "item", "cpu", "numpy", "nonzero", "unique", "tensor", "as_tensor", "new_tensor")
    BELOW = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "repeat_interleave.Tensor", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in self.ASKED and not (name == "as_tensor" and isinstance(args[0], Tensor)):
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    @classmethod
    @contextmanager
    def of(cls) -> Iterator[list[str]]:
        waits = cls()

        class Below(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                name = str(func).removeprefix("aten.")
                is_mask = name.startswith("index.") and any(i is not None and i.dtype == torch.bool for i in args[1])
                if is_mask or name.startswith(cls.BELOW):
                    waits.found.append(name)
                return func(*args, **(kwargs or {}))

        with waits, Below():
            yield waits.found


def step(experts: nn.Module, index: Tensor, updates: dict[str, PackedLora]) -> list[Tensor]:
    """The output of a layer of experts, and every gradient."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(len(index), 64, generator=draw).requires_grad_()
    weight = torch.rand(index.shape, generator=draw).requires_grad_()
    leaves = [
        x,
        weight,
        *(part for one in updates.values() for part in (one.packed_a, one.packed_b) if part is not None),
    ]
    out = expert_lora.apply_experts(experts, x, index, weight, updates)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def random_updates(experts: Any, rank: int = 3) -> dict[str, PackedLora]:
    draw = torch.Generator().manual_seed(4)

    def factor(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=draw) * 0.1).requires_grad_()

    names = {name: getattr(experts, name).shape for name in ("gate_up_proj", "down_proj")}
    sizes = {name: (shape[1:] if not experts.is_transposed else shape[:0:-1]) for name, shape in names.items()}
    return {
        name: PackedLora(factor(4 * rank, inputs), factor(outputs, 4 * rank), 0.5)
        for name, (outputs, inputs) in sizes.items()
    }


ROUTINGS = {
    "of all": torch.tensor([[0, 3], [1, 2], [2, 3], [0, 1]] * 9),
    "of two": torch.tensor([[0, 3]] * 16),
    "of the last": torch.tensor([[3, 2]] * 16),
    "of few rows": torch.tensor([[2, 0]]),
}


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("matrices", [1, 2, 3, 100])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_nf4_layer_on_a_gpu_is_the_cpus_and_waits_for_nothing(
    nf4_experts: dict[str, Any],
    as_on_a_gpu: pytest.MonkeyPatch,
    family: str,
    matrices: int,
    is_fused: bool,
    routing: str,
) -> None:
    """So many matrices dequantized at a time, with a kernel of grouped products or without."""
    experts, index = nf4_experts[family], ROUTINGS[routing]
    updates = random_updates(experts)
    as_on_a_gpu.setattr(expert_rows, "PORTION_BYTES", matrices * 128 * 64 * 4)
    as_on_a_gpu.setattr(expert_rows, "is_fused", lambda device, dtype: is_fused)
    with Waits.of() as waits:
        got = step(experts, index, updates)
    assert not waits
    as_on_a_gpu.setattr(expert_rows, "_is_grouped", lambda device: False)
    for one, want in zip(got, step(experts, index, updates), strict=True):
        assert relative(one, want) < 1e-5


def test_nf4_of_fewer_rows_than_experts_dequantizes_a_matrix_a_row(
    nf4_experts: dict[str, Any], as_on_a_gpu: pytest.MonkeyPatch
) -> None:
    dequantized: list[int] = []
    matrices = Nf4.matrices
    as_on_a_gpu.setattr(
        Nf4, "matrices", lambda self, index: (dequantized.append(len(out := matrices(self, index))), out)[1]
    )
    step(nf4_experts["qwen3_moe"], ROUTINGS["of few rows"], {})
    assert sum(dequantized) == 8  # two rows, two weights, forward and backward
    dequantized.clear()
    step(nf4_experts["qwen3_moe"], ROUTINGS["of two"], {})
    assert sum(dequantized) == 16  # all experts: which are chosen is known on the GPU alone


def test_nf4_dequantizes_only_chosen_experts_on_a_cpu(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = next(m for m in load_nf4(tiny_model("mixtral")).modules() if hasattr(m, "is_transposed"))
    taken: list[int] = []
    one = Nf4.__getitem__
    monkeypatch.setattr(Nf4, "__getitem__", lambda self, index: taken.append(index) or one(self, index))
    expert_lora.apply_experts(experts, torch.randn(8, 64), torch.tensor([[1, 2]] * 8), torch.ones(8, 2), {})
    assert sorted(set(taken)) == [1, 2]


# --- the audit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "llama"])
def test_audit_bits_says_what_is_held_in_4_bits(tiny_model: Any, family: str) -> None:
    model = load_nf4(tiny_model(family))
    lines = {line.part: line for line in audit_bits(model)}
    plain = load(tiny_model(family, name="plain"))
    assert sum(line.num_weights for line in lines.values()) == sum(p.numel() for p in plain.parameters())
    assert sum(line.num_bytes for line in lines.values()) <= memory_of(model)
    for part in ("router", "embeddings", "norms"):
        assert part not in lines or lines[part].num_in_4bit == 0
    held = [part for part in ("attention", "routed_experts", "shared_experts", "dense_ffn") if part in lines]
    for part in held:
        assert lines[part].share > 0.98 and 4.12 < lines[part].bits < 4.15 and 0.05 < lines[part].worst_error < 0.12


def test_audit_bits_refuses_experts_left_in_16_bits(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match=r"routed experts are left in 16 bits, such as .*gate_up_proj"):
        audit_bits(load(tiny_model("qwen3_moe")))


def test_audit_bits_refuses_one_layer_left_in_16_bits(tiny_model: Any) -> None:
    model = load_nf4(tiny_model("qwen3_moe"))
    block = find_experts(model)[1].module
    for part in ("packed", "absmax", "scale", "offset", "error"):
        delattr(block, f"down_proj_{part}")
    with pytest.raises(ModelError, match=r"1 weights of routed experts .*layers\.1\.mlp.experts.down_proj"):
        audit_bits(model)


def test_audit_bits_refuses_a_dense_model_in_16_bits(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="no weight of the model is in 4 bits"):
        audit_bits(load(tiny_model("llama")))


def test_audit_bits_refuses_unusable_numbers(tiny_model: Any) -> None:
    model = load(tiny_model("qwen3_moe"))
    model.model.layers[1].mlp.experts.down_proj.data[2, 3, 5] = float("nan")
    broken = tiny_model("qwen3_moe", name="broken")
    model.save_pretrained(broken)
    with pytest.raises(ModelError, match="routed_experts: a weight is nan% off"):
        audit_bits(load_nf4(broken))


def test_audit_bits_names_linear_layers_of_odd_sizes_that_stay(tiny_model: Any) -> None:
    model = load_nf4(tiny_model("deepseek_v3", kv_lora_rank=40, qk_rope_head_dim=10, hidden_size=64))
    assert is_in_nf4(model)
    held = {line.part: line for line in audit_bits(model)}
    assert 0 < held["attention"].share <= 1 and held["routed_experts"].share == 1


def test_experts_that_do_not_divide_into_blocks_are_refused(tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="Qwen3MoeExperts are 6 × 33"):
        load_nf4(
            tiny_model(
                "qwen3_moe",
                moe_intermediate_size=3,
                hidden_size=33,
                num_attention_heads=3,
                num_key_value_heads=3,
                head_dim=10,
            )
        )


def test_experts_of_an_unknown_layout_are_refused_by_name(tiny_model: Any) -> None:
    config = load(tiny_model("qwen3_moe")).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    unknown, listed = copy.deepcopy(model), copy.deepcopy(model)
    unknown.model.layers[0].mlp.experts.has_post_expert_norm = True
    listed.model.layers[0].mlp.experts = nn.ModuleList([nn.Linear(64, 64, device="meta") for _ in range(4)])
    with pytest.raises(ModelError, match=r"Qwen3MoeForCausalLM: its experts \(model.layers.0.mlp.experts, "):
        reserve_nf4(unknown)
    with pytest.raises(ModelError, match=r"qwen3_moe: is a mixture whose experts \(model.layers.0.mlp.experts, "):
        reserve_nf4(listed)


@pytest.mark.parametrize("family", ["deepseek_v3", "llama"])
def test_nf4_model_stays_in_4_bits_when_cast_or_moved(tiny_model: Any, family: str) -> None:
    model = load_nf4(tiny_model(family)).eval()
    scales = {name: b.clone() for name, b in model.named_buffers() if name.endswith(("scale", "offset"))}
    want, num_bytes = model(IDS).logits, memory_of(model)
    model = model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16 and memory_of(model) < num_bytes
    assert all(torch.equal(buffer, scales[name]) for name, buffer in model.named_buffers() if name in scales)
    assert relative(model(IDS).logits, want) < 0.1
    assert scales


def test_linear_layers_with_a_forward_of_their_own_stay_in_16_bits(tiny_model: Any) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    config = load(tiny_model("qwen3_moe")).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.model.layers[0].self_attn.q_proj = Doubled(64, 64)
    assert not any("layers.0.self_attn.q_proj" in name for name in reserve_nf4(model))
    assert type(model.model.layers[0].self_attn.q_proj) is Doubled


@pytest.mark.parametrize(
    ("family", "stays"),
    [
        ("qwen3_next", {"linear_attn.conv1d"}),
        ("granitemoehybrid", {"mamba.conv1d", "mamba.out_proj"}),
        ("lfm2_moe", {"conv.conv"}),
        ("jamba", {"mamba.conv1d", "mamba.dt_proj"}),
    ],
)
def test_what_cannot_be_held_in_4_bits_stays_and_all_else_is_held(family: str, stays: set[str]) -> None:
    model = meta_model(config_of(family))
    held = {name.removesuffix(".weight") for name in reserve_nf4(model)}
    part_of = Anatomy(model)
    matrices = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d)}
    left = {name for name in matrices - held if part_of(f"{name}.weight") not in ("router", "embeddings")}
    assert {re.sub(r"^model\.layers\.\d+\.", "", name) for name in left} == stays
    assert {f"{one.name}.{weight}" for one in find_experts(model) for weight in one.parameters} <= held


@pytest.mark.parametrize("family", ["qwen3_next", "jamba"])
def test_a_model_held_so_computes_what_its_dequantized_weights_do(
    tmp_path: Path, tiny_tokenizer: Any, family: str
) -> None:
    folder = save_family(tmp_path / family, tiny_tokenizer, family)
    model = load_nf4(folder).eval()
    plain = dequantized(folder, model, torch.float32).eval()
    assert relative(model(IDS).logits, plain(IDS).logits) < 1e-4
