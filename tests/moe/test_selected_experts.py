"""Training chosen experts alone: full fine-tuning's gradients for them, nothing else moves, memory is their share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from dsr1_tune.moe import expert_rows, selected_experts
from dsr1_tune.moe.anatomy import ExpertBlock, find_experts
from dsr1_tune.moe.expert_rows import RoutedRows
from dsr1_tune.moe.selected_experts import train_lora, train_weights, trained_tensors

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss"]


MakeModel = Callable[..., Any]


@pytest.fixture
def make_model(tiny_model: Callable[..., Path]) -> MakeModel:
    """make_model("qwen3_moe", num_experts=16) is such a tiny model with random weights, the same every time."""

    def make(family: str, **changes: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model(family, **changes), dtype=torch.float32).train()

    return make


def chosen_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Other experts in every layer."""
    return {block.name: (layer % 4, 3) if layer % 4 != 3 else (1,) for layer, block in enumerate(find_experts(model))}


def loss_of(model: Any) -> Tensor:
    torch.manual_seed(1)
    ids = torch.randint(2, 258, (2, 24))
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def difference(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm())


def fused_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{block.name}.{name}": parameter
        for block in find_experts(model)
        for name, parameter in block.module.named_parameters(recurse=False)
    }


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_chosen_are_those_of_full_fine_tuning(
    make_model: MakeModel, family: str, checkpointing: bool
) -> None:
    full, ours = make_model(family), make_model(family)
    chosen = chosen_of(ours)
    train_weights(ours, chosen)
    if checkpointing:
        ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    want, got = loss_of(full), loss_of(ours)
    assert float(got) == pytest.approx(float(want), abs=1e-5)
    want.backward()
    got.backward()
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    num_fused = len(fused_of(full)) // len(chosen)
    assert len(trained) == sum(len(numbers) for numbers in chosen.values()) * num_fused
    largest = 0.0
    for block in find_experts(full):
        for name, fused in block.module.named_parameters(recurse=False):
            for number in chosen[block.name]:
                mine = ours.get_parameter(f"{block.name}.chosen.{number}.{name}")
                assert mine.grad is not None and fused.grad is not None
                if float(fused.grad[number].norm()):
                    assert difference(mine.grad, fused.grad[number]) < 1e-5, (name, number)
                    largest = max(largest, float(mine.grad.norm()))
                else:
                    assert not mine.grad.any()
    assert largest > 0
    assert all(ours.get_parameter(name).grad is None for name in fused_of(ours))


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_move_the_chosen_as_full_fine_tuning_would_and_nothing_else(make_model: MakeModel, family: str) -> None:
    full, ours = make_model(family), make_model(family)
    before = copy.deepcopy(full.state_dict())
    chosen = chosen_of(ours)
    train_weights(ours, chosen)
    mine = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    theirs = torch.optim.SGD(full.parameters(), lr=0.1)
    loss_of(ours).backward()
    loss_of(full).backward()
    mine.step()
    theirs.step()
    for name, got in fused_of(ours).items():
        numbers = chosen[name.rpartition(".")[0]]
        for number, expert in enumerate(got):
            if number in numbers:
                # A step is tiny beside the weight: compare what it changed.
                moved, wanted = expert - before[name][number], full.get_parameter(name)[number] - before[name][number]
                assert difference(moved, wanted) < 1e-4 or float(wanted.norm()) < 1e-6
            else:
                assert torch.equal(expert, before[name][number])
    for name, parameter in ours.named_parameters():
        if name not in fused_of(ours) and ".chosen." not in name:
            assert torch.equal(parameter, before[name]), name
    changed = [name for name, got in fused_of(ours).items() if not torch.equal(got, before[name])]
    assert len(changed) == len(fused_of(ours))


def test_a_second_step_sees_the_first(make_model: MakeModel) -> None:
    ours = make_model("qwen3_moe")
    train_weights(ours, chosen_of(ours))
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(ours)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.05


def test_gradients_and_state_are_the_chosen_share_and_the_weights_take_no_further_memory(make_model: MakeModel) -> None:
    model = make_model("qwen3_moe", num_experts=16)
    chosen = {block.name: (0, 5, 9) for block in find_experts(model)}
    train_weights(model, chosen)
    num_fused = sum(parameter.numel() for parameter in fused_of(model).values())
    trained = list(trained_tensors(model).values())
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    loss_of(model).backward()
    optimizer.step()
    share = 3 / 16
    assert sum(parameter.numel() for parameter in trained) == share * num_fused
    assert sum(p.grad.numel() for p in model.parameters() if p.grad is not None) == share * num_fused
    state = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert sum(value.nbytes for value in state) == 2 * 4 * share * num_fused
    storages = {p.untyped_storage().data_ptr() for p in fused_of(model).values()}
    assert {p.untyped_storage().data_ptr() for p in trained} <= storages


class Largest(TorchDispatchMode):
    """Remembers the largest 3-D tensor that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dim() == 3 and leaf.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, leaf.numel())
        return out


@pytest.mark.parametrize("method", ["weights", "lora"])
def test_chosen_experts_never_make_anything_of_all_experts_size(make_model: MakeModel, method: str) -> None:
    model = make_model("qwen3_moe", num_experts=64, vocab_size=258)
    chosen = {block.name: (0, 5) for block in find_experts(model)}
    if method == "weights":
        train_weights(model, chosen)
    else:
        train_lora(model, chosen, 4, 2.0)
    num_fused = next(iter(fused_of(model).values())).numel()
    with Largest() as seen:
        loss_of(model).backward()
    assert 0 < seen.numel <= num_fused // 16


def test_where_the_weights_have_been_copied_the_parameters_become_views_again(make_model: MakeModel) -> None:
    model = make_model("qwen3_moe")
    train_weights(model, chosen_of(model))
    copied = copy.deepcopy(model)
    parted = copied.get_parameter("model.layers.0.mlp.experts.chosen.3.down_proj")
    fused = copied.get_parameter("model.layers.0.mlp.experts.down_proj")
    assert parted.data_ptr() != fused[3].data_ptr()
    with torch.no_grad():
        parted.mul_(2.0)  # as an optimizer would, before the next forward pass
        model.get_parameter("model.layers.0.mlp.experts.down_proj")[3].mul_(2.0)
    assert torch.equal(loss_of(copied), loss_of(model))
    assert parted.data_ptr() == fused[3].data_ptr() and torch.equal(parted, fused[3])
    assert copied.get_parameter("model.layers.0.mlp.experts.chosen.3.down_proj") is parted


def test_bfloat16_and_autocast_compute_in_the_weights_format(make_model: MakeModel) -> None:
    model = make_model("mixtral").bfloat16()
    want = float(loss_of(model))
    train_weights(model, chosen_of(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert float(loss) == pytest.approx(want, rel=0.02)
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}


# --- experts without a gate ------------------------------------------------------------------------------------------


def test_experts_without_a_gate_but_with_biases() -> None:
    torch.manual_seed(0)
    num_experts, width, inner = 4, 16, 8

    class Ungated(nn.Module):
        has_gate, has_bias, is_transposed, has_post_expert_norm = False, True, False, False
        act_fn = staticmethod(nn.functional.gelu)

        def __init__(self) -> None:
            super().__init__()
            shapes = {
                "up_proj": (num_experts, inner, width),
                "up_proj_bias": (num_experts, inner),
                "down_proj": (num_experts, width, inner),
                "down_proj_bias": (num_experts, width),
            }
            for name, shape in shapes.items():
                setattr(self, name, nn.Parameter(torch.randn(shape)))

        def forward(self, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor) -> Tensor:
            """The plain formula."""
            y = torch.einsum("td,eid->tei", x_TD, self.up_proj) + self.up_proj_bias
            y = torch.einsum("tei,edi->ted", self.act_fn(y), self.down_proj) + self.down_proj_bias
            gate_TE = torch.zeros(len(x_TD), num_experts).scatter_add(1, index_TK, weight_TK)
            return torch.einsum("ted,te->td", y, gate_TE)

    experts = Ungated()
    x_TD, weight_TK = torch.randn(10, width, requires_grad=True), torch.rand(10, 2, requires_grad=True)
    index_TK = torch.stack([torch.randperm(3)[:2] for _ in range(10)])  # the last expert gets nothing
    wanted = experts(x_TD, index_TK, weight_TK)
    wanted.sin().sum().backward()
    want = {name: p.grad.clone() for name, p in experts.named_parameters() if p.grad is not None}
    dx, dweight = x_TD.grad, weight_TK.grad
    x_TD.grad = weight_TK.grad = None

    experts.requires_grad_(False)
    experts.chosen = selected_experts.ChosenWeights(ExpertBlock("experts", experts), (1, 3))
    got = selected_experts._forward(experts, x_TD, index_TK, weight_TK)
    got.sin().sum().backward()
    assert difference(got, wanted) < 1e-5
    assert x_TD.grad is not None and weight_TK.grad is not None and dx is not None and dweight is not None
    assert difference(x_TD.grad, dx) < 1e-5 and difference(weight_TK.grad, dweight) < 1e-5
    for name, gradient in want.items():
        mine = experts.get_parameter(f"chosen.1.{name}").grad
        assert mine is not None and difference(mine, gradient[1]) < 1e-5
        empty = experts.get_parameter(f"chosen.3.{name}").grad
        assert empty is not None and not empty.any()


# --- low-rank factors ------------------------------------------------------------------------------------------------


def randomize_factors(model: nn.Module) -> None:
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.7)


def merged(make_model: MakeModel, model: Any, family: str) -> Any:
    """A plain model whose chosen experts have the update in their weights."""
    plain = make_model(family)
    for block, mine in zip(find_experts(plain), find_experts(model), strict=True):
        chosen = mine.module.chosen
        for name in block.parameters:
            for place, number in enumerate(chosen.numbers):
                update = chosen.scale * chosen.lora_B[name][place] @ chosen.lora_A[name][place]
                weight = getattr(block.module, name).data[number]
                weight += update.detach().t() if block.module.is_transposed else update.detach()
    return plain


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_lora_updates_the_experts_as_if_merged(make_model: MakeModel, family: str) -> None:
    model = make_model(family)
    base = float(loss_of(model))
    train_lora(model, chosen_of(model), rank=3, scale=0.5)
    assert float(loss_of(model)) == pytest.approx(base, abs=1e-5)  # B is zero
    randomize_factors(model)
    plain = merged(make_model, model, family)
    got, want = loss_of(model), loss_of(plain)
    assert abs(float(want) - base) > 1e-3
    assert float(got) == pytest.approx(float(want), abs=1e-5)

    got.backward()
    want.backward()
    for block, mine in zip(find_experts(plain), find_experts(model), strict=True):
        chosen = mine.module.chosen
        for name in block.parameters:
            gradient = getattr(block.module, name).grad
            for place, number in enumerate(chosen.numbers):
                dw = gradient[number].t() if block.module.is_transposed else gradient[number]
                a, b = chosen.lora_A[name], chosen.lora_B[name]
                wanted_a, wanted_b = 0.5 * b[place].t() @ dw, 0.5 * dw @ a[place].t()
                if float(dw.norm()):
                    assert difference(a.grad[place], wanted_a) < 1e-5
                    assert difference(b.grad[place], wanted_b) < 1e-5
                else:
                    assert not a.grad[place].any() and not b.grad[place].any()


def test_chosen_lora_is_float32_over_bfloat16_weights(make_model: MakeModel) -> None:
    model = make_model("gpt_oss").bfloat16()
    want = float(loss_of(model))
    train_lora(model, chosen_of(model), rank=3, scale=0.5)
    loss = loss_of(model)
    loss.backward()
    assert float(loss) == pytest.approx(want, rel=0.02)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}


def test_chosen_lora_is_of_the_chosen_alone(make_model: MakeModel) -> None:
    model = make_model("qwen3_moe", num_experts=16)
    train_lora(model, {block.name: (2, 7, 11) for block in find_experts(model)}, rank=4, scale=1.0)
    shapes = {tuple(p.shape) for p in model.parameters() if p.requires_grad}
    assert shapes == {(3, 4, 64), (3, 128, 4), (3, 64, 4)}
    loss_of(model).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in fused_of(model).values())


# --- what is refused, and details ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"model.layers.7.mlp.experts": (0,)}, r"no experts called model\.layers\.7\.mlp\.experts"),
        ({"model.layers.0.mlp.experts": (4,)}, r"model\.layers\.0\.mlp\.experts: has 4 experts, there is no number 4"),
        ({}, "no expert is chosen"),
    ],
)
def test_chosen_experts_that_the_model_does_not_have_are_refused(
    make_model: MakeModel, chosen: dict[str, tuple[int, ...]], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        train_weights(make_model("qwen3_moe"), chosen)


def test_chosen_experts_of_a_dense_model_are_refused(make_model: MakeModel) -> None:
    with pytest.raises(ModelError, match="no routed experts"):
        train_weights(make_model("llama"), {"x": (0,)})


def test_a_layer_without_chosen_experts_stays_as_it_is(make_model: MakeModel) -> None:
    model = make_model("qwen3_moe")
    want = float(loss_of(model))
    train_weights(model, {"model.layers.1.mlp.experts": (2,)})
    loss = loss_of(model)
    loss.backward()
    assert float(loss) == pytest.approx(want, abs=1e-5)
    assert all(".layers.1." in name for name, p in model.named_parameters() if p.requires_grad)


def test_sorted_rows_can_be_put_back() -> None:
    index_TK = torch.tensor([[2, 0], [0, 3], [2, 3]])
    rows = RoutedRows.sort(index_TK, 5, tile=1)
    assert rows.expert_P.tolist() == [0, 0, 2, 2, 3, 3]
    assert rows.token_P[rows.position_S].tolist() == [0, 0, 1, 1, 2, 2]
    rows_C, of_chosen = rows.pick((2, 4))
    assert rows_C.tolist() == [2, 3] and [count for _, count in of_chosen.spans] == [2, 0]


@pytest.mark.parametrize("method", ["weights", "lora"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_grouped_products_as_on_a_gpu_give_the_same(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, family: str, method: str
) -> None:
    gradients = []
    for is_grouped in (False, True):
        monkeypatch.setattr(expert_rows, "_is_grouped", lambda device, answer=is_grouped: answer)
        model = make_model(family)
        if method == "weights":
            train_weights(model, chosen_of(model))
        else:
            train_lora(model, chosen_of(model), 3, 0.5)
            randomize_factors(model)
        loss_of(model).backward()
        gradients.append({name: tensor.grad for name, tensor in trained_tensors(model).items()})
    one_by_one, grouped = gradients
    assert one_by_one.keys() == grouped.keys()
    for name, want in one_by_one.items():
        assert difference(grouped[name], want) < 1e-5 if want.any() else not grouped[name].any(), name
