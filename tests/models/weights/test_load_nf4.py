"""Loading in 4 bits: tensor by tensor, from 16 bits, 32 bits and block-FP8, saved and loaded again exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models import load
from dsr1_tune.models.weights.load_nf4 import Nf4Config
from dsr1_tune.moe.quantized_experts import audit_bits, memory_of
from dsr1_tune.quant.nf4 import stored_weight

IDS = torch.arange(20).view(1, -1)
FAMILIES = ["deepseek_v3", "qwen3_moe", "gpt_oss", "llama"]


def loaded(folder: Path, quantized: bool = True, dtype: str = "float32") -> Any:
    return load.load(Base(model=str(folder), dtype=dtype), quantized=quantized).model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


def all_tensors(model: Any) -> dict[str, Tensor]:
    return model.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_nf4_model_is_saved_and_loaded_again_exactly(tiny_model: Any, tmp_path: Path, family: str) -> None:
    folder = tiny_model(family)
    first = loaded(folder)
    logits(first)  # a forward pass changes nothing in what is saved
    first.save_pretrained(tmp_path / "again")
    for file in folder.glob("*token*"):
        shutil.copy(file, tmp_path / "again")
    shutil.copy(folder / "chat_template.jinja", tmp_path / "again")
    again = loaded(tmp_path / "again")
    want, got = all_tensors(first), all_tensors(again)
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    assert torch.equal(logits(again), logits(first))
    assert audit_bits(again) == audit_bits(first)
    # transformers' own entry finds the way too, and no 16-bit copy of an expert is in the file
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert torch.equal(logits(plain), logits(first))
    with safe_open(tmp_path / "again" / "model.safetensors", framework="pt") as file:
        assert not any(name.endswith(("gate_up_proj", "down_proj", "q_proj.weight")) for name in file.keys())  # noqa: SIM118
    assert json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["quant_method"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_from_and_into_any_number_format(tiny_model: Any, tmp_path: Path, dtype: str, stored: torch.dtype) -> None:
    folder = tiny_model("qwen3_moe")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w.to(stored) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    model = loaded(folder, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    want = logits(loaded(folder, quantized=False, dtype=dtype)).float()
    assert (logits(model).float() - want).norm() / want.norm() < 0.3
    assert {line.part: line.share for line in audit_bits(model)}["routed_experts"] == 1


def test_nf4_takes_bfloat16_for_the_rest_by_default(tiny_base: Path) -> None:
    assert loaded(tiny_base, dtype="auto").dtype == torch.bfloat16


def test_nf4_of_a_sharded_checkpoint_is_the_same(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model("deepseek_v3")
    want = all_tensors(loaded(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    got = all_tensors(loaded(folder))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_nf4_config_quantizes_in_transformers_own_loader(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=Nf4Config(), dtype=torch.float32)
    assert torch.equal(logits(model.eval()), logits(loaded(tiny_base)))
    assert memory_of(model) < 0.4 * memory_of(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))


def test_nf4_load_refuses_missing_weights(tiny_model: Any) -> None:
    folder = tiny_model("qwen3_moe")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing, such as model.layers.1.self_attn.q_proj"):
        loaded(folder)


def test_nf4_of_experts_whose_blocks_cross_rows_is_as_near_as_that_of_others(tiny_model: Any) -> None:
    """96 columns: every third block begins in one row and ends in the next."""
    folder = tiny_model("qwen3_moe", moe_intermediate_size=96)
    model, plain = loaded(folder), loaded(folder, quantized=False)
    assert all(0.08 < line.worst_error < 0.13 for line in audit_bits(model) if line.num_in_4bit)
    with torch.no_grad():
        for layer, exact in zip(model.model.layers, plain.model.layers, strict=True):
            held, weight = stored_weight(layer.mlp.experts, "down_proj"), exact.mlp.experts.down_proj
            weight.copy_(held.matrices(slice(None)))  # type: ignore[union-attr]
            exact.mlp.experts.gate_up_proj.copy_(stored_weight(layer.mlp.experts, "gate_up_proj").matrices(slice(None)))  # type: ignore[union-attr]
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(exact.self_attn, name).weight.copy_(stored_weight(getattr(layer.self_attn, name), "weight")[0])
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)
