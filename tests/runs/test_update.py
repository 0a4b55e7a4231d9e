"""Whether training has changed anything: one bit is enough, and weight decay of LoRA's A is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter
from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.update import check_changed, fingerprint


@pytest.fixture
def adapted(tiny_base: Path) -> nn.Module:
    model: nn.Module = add_lora(AutoModelForCausalLM.from_pretrained(tiny_base), Adapter(rank=4))
    return model


def weight_of(model: nn.Module, part: str) -> Any:
    return next(weight for name, weight in model.named_parameters() if part in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_that_changes_shows(dtype: torch.dtype) -> None:
    model = nn.Linear(300, 200).to(dtype)
    before = fingerprint(model)
    assert fingerprint(model) == before and set(before) == {"weight", "bias"}
    for place in ((0, 0), (0, 1), (199, 299)):
        kept = model.weight.data[place].clone()
        model.weight.data[place] = torch.nextafter(kept.float(), torch.tensor(9.0)).to(dtype) + (dtype != torch.float32)
        assert fingerprint(model) != before
        model.weight.data[place] = kept
    assert fingerprint(model) == before


def test_numbers_that_change_places_show() -> None:
    model = nn.Linear(4, 4)
    before = fingerprint(model)
    model.weight.data[0], model.weight.data[1] = model.weight.data[1].clone(), model.weight.data[0].clone()
    assert fingerprint(model) != before


def test_only_what_is_trained_counts(adapted: nn.Module) -> None:
    before = fingerprint(adapted)
    weight_of(adapted, "embed_tokens").data += 1
    weight_of(adapted, ".lora_A.").data *= 0.5
    assert fingerprint(adapted) == before
    weight_of(adapted, ".lora_B.").data[0, 0] = 1e-30
    assert fingerprint(adapted) != before


def test_the_bias_that_balances_routers_counts(adapted: nn.Module) -> None:
    before = fingerprint(adapted)
    next(buffer for name, buffer in adapted.named_buffers() if "bias" in name)[0] += 0.001
    assert fingerprint(adapted) != before


@pytest.mark.parametrize(
    ("norms", "hint"),
    [
        ([0.0, 0.0], "no step had a gradient; rewards that fail"),
        ([], "no step had a gradient; rewards that fail"),
        ([float("inf"), float("nan")], "no step had a finite gradient"),
        ([0.0, 0.5], "the steps are smaller than the weights' number format resolves"),
    ],
)
def test_a_run_that_changed_nothing_is_told_why(tmp_path: Path, norms: list[float], hint: str) -> None:
    folder, model = RunFolder(tmp_path), nn.Linear(2, 2)
    lines = [{"step": step, "loss": 1.0, "grad_norm": norm} for step, norm in enumerate(norms, start=1)]
    folder.log_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = fingerprint(model)
    with pytest.raises(ModelError, match="training has changed nothing") as caught:
        check_changed(model, before, folder)
    assert caught.value.hint.startswith(hint) and str(folder.log_file) in caught.value.hint
    model.bias.data[0] += 1
    check_changed(model, before, folder)
