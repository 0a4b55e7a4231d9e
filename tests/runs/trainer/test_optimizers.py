"""The optimizer is the one asked for, its groups learn as fast as they should, and its state is taken up exactly."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from dsr1_tune.config import Adapter, EsftRun, FullRun, LoraRun, Router, Schedule
from dsr1_tune.errors import ConfigError
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.runs.trainer import optimizers
from dsr1_tune.runs.trainer.optimizers import (
    ExactAdafactor,
    StochasticAdamW,
    build,
    check_optimizer,
    cosine_after_warmup,
    for_run,
    rate_factor,
    round_to_bfloat16,
)

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


def gradients(num_steps: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(5, 7, generator=generator).to(dtype), torch.randn(3, generator=generator).to(dtype))
        for _ in range(num_steps)
    ]


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    return [nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in ((5, 7), (3,))]


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: list[tuple[Tensor, Tensor]]) -> None:
    for step in steps:
        for weight, gradient in zip(params, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_in_float32_the_numbers_are_torchs(weight_decay: float, rounding: Any) -> None:
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay}
    ours, theirs = weights(), weights()
    train(StochasticAdamW(ours, **settings, rounding=rounding), ours, gradients(10))
    train(torch.optim.AdamW(theirs, **settings, foreach=False), theirs, gradients(10))
    for got, want, start in zip(ours, theirs, weights(), strict=True):
        assert torch.equal(got, want)
        assert not torch.equal(got, start)


def test_a_large_parameter_is_updated_in_pieces_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = weights(), weights()
    train(StochasticAdamW(whole, lr=0.1), whole, gradients(3))
    monkeypatch.setattr(optimizers, "_PIECE", 14)  # two rows of seven
    sizes: list[int] = []
    update = optimizers._update
    monkeypatch.setattr(optimizers, "_update", lambda *given: (sizes.append(len(given[3])), update(*given)))
    train(StochasticAdamW(pieces, lr=0.1), pieces, gradients(3))
    assert all(torch.equal(got, want) for got, want in zip(pieces, whole, strict=True))
    assert sizes[:4] == [2, 2, 1, 3]


def tiny_updates(rounding: Any, num_steps: int = 200) -> tuple[Tensor, float]:
    """Weights of 1.0 after steps of 0.0004 each, where bfloat16's next number below 1 is 0.0039 away."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=4e-4, eps=0.0, rounding=rounding)
    for _ in range(num_steps):
        weight.grad = torch.ones_like(weight)  # Adam's update is then lr, whatever the step
        optimizer.step()
    return weight.detach(), num_steps * 4e-4


def test_many_tiny_updates_move_bfloat16_weights_on_average() -> None:
    weight, wanted = tiny_updates("stochastic")
    moved = 1 - weight.float()
    assert float(moved.mean()) == pytest.approx(wanted, rel=0.02)
    assert float(moved.std()) > 0


def test_rounded_to_nearest_they_are_lost() -> None:
    weight, _ = tiny_updates("nearest")
    assert torch.equal(weight, torch.ones_like(weight))


def test_rounding_gives_a_neighbour_with_the_right_probability() -> None:
    low, high = 1.0, 1.0078125
    exact = torch.full((100_000,), low + 0.25 * (high - low))
    rounded = round_to_bfloat16(exact, torch.Generator().manual_seed(1)).float()
    assert set(rounded.unique().tolist()) == {low, high}
    assert float((rounded == high).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_what_bfloat16_can_hold_is_not_rounded() -> None:
    exact = torch.tensor([0.0, -0.0, 1.5, -3.0e38, float("inf"), float("-inf")]).bfloat16().float()
    rounded = round_to_bfloat16(exact, torch.Generator())
    assert torch.equal(rounded.float().view(torch.int32), exact.view(torch.int32))
    not_numbers = torch.tensor([-1, 0x7FFFFFFF, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert round_to_bfloat16(not_numbers, torch.Generator()).isnan().all()


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_the_state_is_float32_and_stays_so_when_it_is_loaded(rounding: Any) -> None:
    params = weights(torch.bfloat16)
    optimizer = StochasticAdamW(params, lr=0.1, rounding=rounding)
    train(optimizer, params, gradients(2, torch.bfloat16))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = StochasticAdamW(weights(torch.bfloat16), lr=0.1, rounding=rounding)
    other.load_state_dict(torch.load(file, weights_only=True))
    for ours, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert theirs[name].dtype == torch.float32
            assert torch.equal(ours[name], theirs[name])
            assert not torch.equal(ours[name], ours[name].bfloat16().float())


def test_a_resumed_run_equals_an_unbroken_one_whatever_else_drew_random_numbers() -> None:
    steps = gradients(6, torch.bfloat16)
    torch.manual_seed(7)
    unbroken = weights(torch.bfloat16)
    train(StochasticAdamW(unbroken, lr=1e-3), unbroken, steps)

    torch.manual_seed(7)
    first = weights(torch.bfloat16)
    optimizer = StochasticAdamW(first, lr=1e-3)
    train(optimizer, first, steps[:3])
    torch.manual_seed(8)
    torch.rand(5)
    resumed = [nn.Parameter(weight.detach().clone()) for weight in first]
    going_on = StochasticAdamW(resumed, lr=1e-3)
    going_on.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(going_on, resumed, steps[3:])
    assert all(torch.equal(got, want) for got, want in zip(resumed, unbroken, strict=True))

    torch.manual_seed(9)
    otherwise = weights(torch.bfloat16)
    train(StochasticAdamW(otherwise, lr=1e-3), otherwise, steps)
    assert not torch.equal(otherwise[0], unbroken[0])


def test_nothing_as_large_as_the_weights_is_kept_but_the_state() -> None:
    params = weights(torch.bfloat16)
    optimizer = StochasticAdamW(params, lr=0.1)
    train(optimizer, params, gradients(1, torch.bfloat16))
    held = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    num_weights = sum(weight.numel() for weight in params)
    assert held == 8 * num_weights + 4 * len(params)  # two float32 numbers a weight, and the number of the step


def test_float16_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        StochasticAdamW(weights(torch.float16), lr=0.1)


@pytest.mark.parametrize(("num_warmup", "num_steps"), [(0, 1), (1, 1), (1, 5), (3, 20), (20, 20), (0, 7)])
def test_no_step_of_the_schedule_is_lost(num_warmup: int, num_steps: int) -> None:
    rates = [rate_factor(done, num_warmup, num_steps) for done in range(num_steps)]
    assert rates[:num_warmup] == [(step + 1) / (num_warmup + 1) for step in range(num_warmup)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[num_warmup:] == sorted(rates[num_warmup:], reverse=True)
    assert rates[num_warmup : num_warmup + 1] in ([1.0], [])


def test_schedule_after_its_warmup_is_transformers_cosine() -> None:
    rates = []
    for make in (cosine_after_warmup, get_cosine_schedule_with_warmup):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        scheduler = make(optimizer, 4, 30)
        rates.append([])
        for _ in range(30):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    ours, theirs = rates
    assert ours[4:] == theirs[4:] and theirs[0] == 0 and ours[0] == pytest.approx(2 / 5)


def test_schedule_is_taken_up_where_it_was_left() -> None:
    def begin() -> tuple[Any, Any]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, cosine_after_warmup(optimizer, 3, 9)

    optimizer, scheduler = begin()
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    again, resumed = begin()
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    for _ in range(7):
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for one in (optimizer, scheduler, again, resumed):
            one.step()
