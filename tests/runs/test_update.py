"""Whether training has changed anything: one bit of a weight is enough, and an update too small to tell is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter, Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.selected_experts import train_lora
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.update import Beginning, check_changed


@pytest.fixture
def adapted(tiny_base: Path) -> nn.Module:
    model: nn.Module = add_lora(AutoModelForCausalLM.from_pretrained(tiny_base), Adapter(rank=4))
    return model


def weight_of(model: nn.Module, part: str) -> Any:
    return next(weight for name, weight in model.named_parameters() if part in name)


def has_changed(model: nn.Module, before: Beginning, folder: Path) -> bool:
    try:
        check_changed(model, before, RunFolder(folder))
    except ModelError:
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_that_changes_shows(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Linear(300, 200).to(dtype)
    before = Beginning.of(model)
    assert not has_changed(model, before, tmp_path) and set(before.digests) == {"weight", "bias"}
    for place in ((0, 0), (0, 1), (199, 299)):
        kept = model.weight.data[place].clone()
        model.weight.data[place] = torch.nextafter(kept.float(), torch.tensor(9.0)).to(dtype) + (dtype != torch.float32)
        assert has_changed(model, before, tmp_path)
        model.weight.data[place] = kept
    assert not has_changed(model, before, tmp_path)


def test_numbers_that_change_places_show(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    before = Beginning.of(model)
    model.weight.data[0], model.weight.data[1] = model.weight.data[1].clone(), model.weight.data[0].clone()
    assert has_changed(model, before, tmp_path)


def test_only_what_is_trained_counts(adapted: nn.Module, tmp_path: Path) -> None:
    before = Beginning.of(adapted)
    weight_of(adapted, "embed_tokens").data += 1
    weight_of(adapted, ".lora_A.").data *= 0.5
    assert not has_changed(adapted, before, tmp_path)
    weight_of(adapted, ".lora_B.").data[0, 0] = 0.01
    assert has_changed(adapted, before, tmp_path)


def test_the_bias_that_balances_routers_counts(adapted: nn.Module, tmp_path: Path) -> None:
    before = Beginning.of(adapted)
    next(buffer for name, buffer in adapted.named_buffers() if "bias" in name)[0] += 0.001
    assert has_changed(adapted, before, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])  # the experts of the second are stored transposed
def test_an_update_that_no_weight_can_tell_is_none(
    tiny_model: Any, tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=dtype), Adapter(rank=4))
    weight_of(model, "q_").data[0] = 0.0  # zeros differ with anything added to them
    before = Beginning.of(model)
    factors = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    for factor in factors:
        nn.init.constant_(factor, 1e-12)
    with pytest.raises(ModelError, match="no weight of the base differs with the update added to it"):
        check_changed(model, before, RunFolder(tmp_path))
    # One weight of one expert is enough.
    experts = next(weight for name, weight in model.named_parameters() if "experts.lora_B" in name)
    experts.data[-1, -1] = 1.0
    check_changed(model, before, RunFolder(tmp_path))


def test_an_update_of_single_experts_counts_where_a_weight_can_tell(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    name = find_experts(model)[-1].name
    train_lora(model, {name: [1, 3]}, rank=2, scale=2.0)
    before = Beginning.of(model)
    for factor in model.get_submodule(name).chosen.lora_B.values():
        nn.init.constant_(factor, 1e-12)
    assert not has_changed(model, before, tmp_path)
    factor.data[1, 0, 0] = 1.0
    assert has_changed(model, before, tmp_path)


def test_a_base_in_4_bits_tells_updates_by_what_it_computes_with(tiny_base: Path, tmp_path: Path) -> None:
    loaded = load(Base(model=str(tiny_base)), quantized=True)
    model = add_lora(loaded.model, Adapter(rank=4))
    before = Beginning.of(model)
    factors = [weight for name, weight in model.named_parameters() if ".lora_B." in name]
    for factor in factors:
        nn.init.constant_(factor, 1e-12)
    assert not has_changed(model, before, tmp_path)
    factors[0].data[-1] = 0.1
    assert has_changed(model, before, tmp_path)


@pytest.mark.parametrize("init", ["kaiming", "orthogonal", "pissa", "olora"])
def test_an_adapter_counts_from_where_it_began(tiny_base: Path, tmp_path: Path, init: Any) -> None:
    model = add_lora(AutoModelForCausalLM.from_pretrained(tiny_base), Adapter(rank=4, init=init))
    before = Beginning.of(model)
    assert not has_changed(model, before, tmp_path)
    weight_of(model, ".lora_B.").data += 1e-12  # where B is 0; else it has no effect on its bits
    assert not has_changed(model, before, tmp_path)
    weight_of(model, ".lora_B.").data += 0.01
    assert has_changed(model, before, tmp_path)


@pytest.mark.parametrize(
    ("norms", "hint"),
    [
        ([0.0, 0.0], "no step had a gradient; rewards that fail"),
        ([], "no step had a gradient; rewards that fail"),
        ([float("inf"), float("nan")], "no step had a finite gradient"),
        ([0.0, 0.5], "the steps are less than the weights' number format can tell"),
    ],
)
def test_a_run_that_changed_nothing_is_told_why(tmp_path: Path, norms: list[float], hint: str) -> None:
    folder, model = RunFolder(tmp_path), nn.Linear(2, 2)
    lines = [{"step": step, "loss": 1.0, "grad_norm": norm} for step, norm in enumerate(norms, start=1)]
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = Beginning.of(model)
    with pytest.raises(ModelError, match="training has changed nothing") as caught:
        check_changed(model, before, folder)
    assert caught.value.hint.startswith(hint) and str(folder.log_file) in caught.value.hint
    model.bias.data[0] += 1
    check_changed(model, before, folder)
