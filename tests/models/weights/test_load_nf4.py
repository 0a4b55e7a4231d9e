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
from dsr1_tune.moe.quantized_experts import audit_bits, is_in_nf4, memory_of
from dsr1_tune.quant import fp8

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
def test_what_was_quantized_is_saved_and_loaded_again_exactly(tiny_model: Any, tmp_path: Path, family: str) -> None:
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
def test_from_and_into_any_number_format(tiny_model: Any, tmp_path: Path, dtype: str, stored: torch.dtype) -> None:
    folder = tiny_model("qwen3_moe")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w.to(stored) for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    model = loaded(folder, dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    want = logits(loaded(folder, quantized=False, dtype=dtype)).float()
    assert (logits(model).float() - want).norm() / want.norm() < 0.3
    assert {line.part: line.share for line in audit_bits(model)}["routed_experts"] == 1


def test_it_takes_bfloat16_for_the_rest_unless_told_otherwise(tiny_base: Path) -> None:
    assert loaded(tiny_base, dtype="auto").dtype == torch.bfloat16


def test_a_sharded_checkpoint_gives_the_same(tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model("deepseek_v3")
    want = all_tensors(loaded(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    got = all_tensors(loaded(folder))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_transformers_own_loader_quantizes_while_loading(tiny_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base, quantization_config=Nf4Config(), dtype=torch.float32)
    assert torch.equal(logits(model.eval()), logits(loaded(tiny_base)))
    assert memory_of(model) < 0.4 * memory_of(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32))


def test_weights_that_are_missing_are_refused_in_4_bits_too(tiny_model: Any) -> None:
    folder = tiny_model("qwen3_moe")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"weights are missing, such as model.layers.1.self_attn.q_proj"):
        loaded(folder)


# --- DeepSeek's block-FP8 --------------------------------------------------------------------------------------------


def to_fp8(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """A weight as DeepSeek stores it: float8, and the inverse scale of each block; the last blocks may overhang."""
    rows, cols = weight.shape
    scale = torch.empty(-(-rows // block), -(-cols // block))
    stored = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    for i, top in enumerate(range(0, rows, block)):
        for j, left in enumerate(range(0, cols, block)):
            part = weight[top : top + block, left : left + block].float()
            scale[i, j] = part.abs().max() / 448
            stored[top : top + block, left : left + block] = (part / scale[i, j]).to(torch.float8_e4m3fn)
    return stored, scale


def as_fp8_checkpoint(folder: Path, block: int) -> Path:
    """Store the linear weights of a model in block-FP8, as DeepSeek's checkpoints are, in two shards."""
    weights = load_file(folder / "model.safetensors")
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        stored[name] = weight
        if (weight.dim() == 2 and name.endswith("_proj.weight")) or ("kv_a_proj" in name and "norm" not in name):
            stored[name], stored[name + "_scale_inv"] = to_fp8(weight, block)
    names = sorted(stored)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: stored[name].contiguous() for name in part}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [block, block]
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("block", [32, 48, 128])
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_block_fp8_is_multiplied_out(tiny_model: Any, family: str, block: int) -> None:
    """Blocks that divide the weights, that overhang, and that are larger than they are."""
    want = loaded(tiny_model(family), quantized=False)
    folder = as_fp8_checkpoint(tiny_model(family, name="fp8"), block)
    got = loaded(folder, quantized=False)
    for name, weight in want.state_dict().items():
        rounded = got.state_dict()[name]
        assert rounded.dtype == torch.float32
        assert (rounded - weight).norm() <= 0.04 * weight.norm(), name
    assert not torch.equal(logits(got), logits(want))
    assert "quantization_config" not in got.config.to_dict()


def test_block_fp8_into_4_bits(tiny_model: Any, tmp_path: Path) -> None:
    folder = as_fp8_checkpoint(tiny_model("deepseek_v3"), block=48)
    exact = loaded(folder, quantized=False)
    exact.save_pretrained(tmp_path / "exact")
    for file in [*folder.glob("*token*"), folder / "chat_template.jinja"]:
        shutil.copy(file, tmp_path / "exact")
    want, got = loaded(tmp_path / "exact"), loaded(folder)
    assert is_in_nf4(got) and audit_bits(got) == audit_bits(want)
    assert all(torch.equal(got.state_dict()[name], tensor) for name, tensor in want.state_dict().items())


def test_multiplying_out_equals_the_formula() -> None:
    weight = torch.randn(100, 70).to(torch.float8_e4m3fn)
    scale = torch.rand(4, 3)
    got = fp8.dequantize(weight, scale, (32, 32))
    for row, col in [(0, 0), (31, 31), (32, 31), (99, 69), (64, 64)]:
        assert got[row, col] == weight[row, col].float() * scale[row // 32, col // 32]


@pytest.mark.parametrize("block", [32, 48, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_into_blocks_comes_back(dtype: torch.dtype, block: int) -> None:
    weight = (torch.randn(100, 70, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    weight[:block, :block] = 0  # a block of zeros
    stored, scale = fp8.to_blocks(weight, (block, block))
    want, want_scale = to_fp8(weight, block)
    has_scale = want_scale > 0
    assert scale.shape == want_scale.shape and torch.equal(scale[has_scale], want_scale[has_scale])
    back = fp8.dequantize(stored, scale, (block, block))
    exact = weight.float()
    assert torch.equal(back[:block, :block], exact[:block, :block])
    # E4M3 has 4 significant bits, and its smallest step is 2^-9 of a block's scale
    assert ((back - exact).abs() <= exact.abs() / 16 + scale.max() * 2**-10).all()
    different = stored.float() != want.float().nan_to_num()
    assert different.float().mean() < 0.01  # the quotient's last bit
    again = fp8.to_blocks(back, (block, block))
    assert torch.equal(fp8.dequantize(*again, (block, block)), back)


@pytest.mark.parametrize(
    "stored_as",
    [{"quant_method": "gptq"}, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}],
)
def test_other_quantized_checkpoints_are_refused(tiny_model: Any, stored_as: dict[str, Any]) -> None:
    folder = tiny_model("deepseek_v3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored_as}))
    with pytest.raises(ModelError, match=rf"stored quantized \({stored_as['quant_method']}\)"):
        load.locate(Base(model=str(folder)))
