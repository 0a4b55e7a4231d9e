"""The optimizer is the one asked for, its groups learn as fast as they should, and its state is taken up exactly."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import nn
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter, EsftRun, FullRun, LoraRun, Router, Schedule
from dsr1_tune.errors import ConfigError
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.runs.trainer.optimizers import ExactAdafactor, build, check_optimizer, for_run
from dsr1_tune.runs.trainer.stochastic_adamw import StochasticAdamW

IDS = torch.randint(2, 258, (2, 19), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted(tiny_base: Any) -> nn.Module:
    """A tiny DeepSeek-V3 with LoRA on everything, DoRA's magnitudes none."""
    return add_lora(AutoModelForCausalLM.from_pretrained(tiny_base), Adapter(rank=64))


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], set[str]]]:
    """Each group with the names of its weights."""
    name_of = {id(weight): name for name, weight in model.named_parameters()}
    return [(group, {name_of[id(weight)] for weight in group["params"]}) for group in optimizer.param_groups]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("auto", torch.optim.AdamW),
        ("adamw", torch.optim.AdamW),
        ("adamw_8bit", AdamW8bit),
        ("adafactor", ExactAdafactor),
    ],
)
def test_optimizer_is_the_one_of_the_settings(adapted: nn.Module, name: Any, kind: type) -> None:
    optimizer = build(adapted, Schedule(optimizer=name, learning_rate=3e-3, weight_decay=0.1))
    assert type(optimizer) is kind
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    (group, names), *others = names_of(adapted, optimizer)
    assert names == trained and not others
    assert (group["lr"], group["weight_decay"]) == (3e-3, 0.1)
    before = copy.deepcopy([weight.detach() for weight in group["params"]])
    step(adapted, optimizer, times=2)
    assert all(not torch.equal(old, new) for old, new in zip(before, group["params"], strict=True))


def test_optimizer_state_is_in_8_bits_on_any_device(adapted: nn.Module) -> None:
    optimizer = build(adapted, Schedule(optimizer="adamw_8bit"))
    step(adapted, optimizer)
    states = [(weight, optimizer.state[weight]) for group in optimizer.param_groups for weight in group["params"]]
    large = [state["state1"].dtype for weight, state in states if weight.numel() >= 4096]
    assert large and set(large) == {torch.uint8}


def test_optimizer_with_lora_plus_trains_b_faster(adapted: nn.Module) -> None:
    optimizer = build(adapted, Schedule(learning_rate=1e-3), lora_plus=16)
    (slow, a), (fast, b) = names_of(adapted, optimizer)
    assert (slow["lr"], fast["lr"]) == (1e-3, 1.6e-2)
    assert all(".lora_A." in name for name in a) and all(".lora_B." in name for name in b)
    assert any("experts.base_layer.lora_B" in name for name in b)  # the fused experts' too
    assert len(a) == len(b) == sum(".lora_A." in name for name, _ in adapted.named_parameters())
    # A schedule, as the trainer has it, keeps the ratio.
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 0.5)
    assert scheduler.get_last_lr() == pytest.approx([5e-4, 8e-3])


def test_optimizer_does_not_decay_norms_biases_and_magnitudes(tiny_base: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    decayed, kept = [], []
    for group, names in names_of(model, build(model, Schedule(weight_decay=0.1))):
        (decayed if group["weight_decay"] else kept).extend(names)
    assert kept and all("norm" in name for name in kept)
    assert not any("norm" in name for name in decayed)
    with_dora = add_lora(model, Adapter(groups=("attention",), dora=True))
    decayed, kept = [], []
    for group, names in names_of(with_dora, build(with_dora, Schedule(weight_decay=0.1))):
        (decayed if group["weight_decay"] else kept).extend(names)
    assert kept and all("magnitude" in name for name in kept)
    assert decayed and all(".lora_A." in name or ".lora_B." in name for name in decayed)


@pytest.mark.parametrize("rounding", ["stochastic", "nearest", None])
def test_optimizer_of_16_bit_weights_rounds(tiny_base: Any, rounding: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    optimizer = build(model, Schedule(), rounding=rounding)
    assert isinstance(optimizer, StochasticAdamW)
    assert optimizer.param_groups[0]["rounding"] == (rounding or "stochastic")


def test_optimizer_takes_the_settings_of_the_run(tiny_base: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    nearest = for_run(model, FullRun(train={"rounding": "nearest"}), quantized=False)
    assert nearest.param_groups[0]["rounding"] == "nearest"
    assert for_run(model, EsftRun(rounding="nearest"), False).param_groups[0]["rounding"] == "nearest"
    adapted = add_lora(model, Adapter(), Router(mode="train"))
    # The adapter is float32 and the routers' copies are not: both are in good hands.
    assert isinstance(for_run(adapted, LoraRun(), False), StochasticAdamW)
    ratio = for_run(adapted, LoraRun(adapter=Adapter(lora_plus=4)), False).param_groups
    assert {round(group["lr"] / ratio[0]["lr"], 6) for group in ratio} == {1.0, 4.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "adafactor"])
def test_optimizer_state_is_restored_to_the_bit(tiny_base: Any, name: Any, dtype: torch.dtype) -> None:
    schedule = Schedule(optimizer=name, learning_rate=1e-3, weight_decay=0.1)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype)
    optimizer = build(model, schedule)
    step(model, optimizer, times=2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    weights = copy.deepcopy(model.state_dict())
    step(model, optimizer, times=2)

    again = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=dtype)
    again.load_state_dict(weights)
    other = build(again, schedule)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    step(again, other, times=2)
    for (key, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), key


def test_optimizer_that_pages_is_refused_without_a_gpu(adapted: nn.Module) -> None:
    schedule = Schedule(optimizer="paged_adamw_8bit")
    with pytest.raises(ConfigError, match="paged_adamw_8bit"):
        check_optimizer(schedule, torch.device("cpu"))
    check_optimizer(schedule, torch.device("cuda"))
    with pytest.raises(ConfigError):
        build(adapted, schedule)
    # Asked for nothing in particular, a quantized base on a CPU is trained by plain AdamW.
    assert type(build(adapted, Schedule(), quantized=True)) is torch.optim.AdamW


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_optimizer_of_a_quantized_base_on_a_gpu_pages(adapted: nn.Module) -> None:
    optimizer = build(adapted.cuda(), Schedule(), quantized=True)
    assert type(optimizer).__name__ == "PagedAdamW8bit" and optimizer.is_paged
