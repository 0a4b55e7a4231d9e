"""Weights of which some become several tensors while they are written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.config import Base
from dsr1_tune.models import load
from dsr1_tune.models.weights import converted
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec, write_weights
from dsr1_tune.models.weights.converted import Converted, open_fp8, open_w4a16
from dsr1_tune.moe.quantized_experts import audit_bits, is_in_nf4
from dsr1_tune.quant import fp8, w4a16
from tests.conftest import to_fp8


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    (tmp_path / "base").mkdir()
    tensors = {"a.weight": torch.arange(15.0).view(3, 5), "b.weight": torch.ones(2, 4), "norm": torch.ones(3)}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    return Checkpoint(tmp_path / "base")


def specs(name: str, spec: Spec) -> dict[str, Spec]:
    return {f"{name}.sign": Spec("I8", spec.shape), f"{name}.rows": Spec("F32", spec.shape[:1]),
            f"{name}.count": Spec("U8", ())}  # fmt: skip


def make(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {
        f"{name}.sign": weight.sign().to(torch.int8),
        f"{name}.rows": weight.sum(1),
        f"{name}.count": torch.tensor(weight.numel(), dtype=torch.uint8),
    }


def test_converted_weights_are_written_in_place_of_those_they_are_made_of(base: Checkpoint, tmp_path: Path) -> None:
    made: list[str] = []
    weights = Converted(base, ["a.weight"], specs, lambda name, weight: made.append(name) or make(name, weight))
    (tmp_path / "out").mkdir()
    write_weights(weights, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == {"a.weight.sign", "a.weight.rows", "a.weight.count", "b.weight", "norm"}
    assert torch.equal(written["a.weight.rows"], torch.arange(15.0).view(3, 5).sum(1))
    assert torch.equal(written["b.weight"], torch.ones(2, 4)) and made
    assert weights.stored("norm") is not None and weights.stored("a.weight.sign") is None
    with pytest.raises(KeyError):
        weights.spec("c.weight")


def test_converted_tensors_stand_at_multiples_of_their_numbers_size(base: Checkpoint) -> None:
    weights = Converted(base, ["a.weight", "b.weight"], specs, make)
    place = 0
    for name in weights.shards["model.safetensors"]:
        spec = weights.spec(name)
        assert place % {"I8": 1, "U8": 1, "F32": 4}[spec.dtype] == 0, name
        place += spec.num_bytes


def test_converted_weight_may_be_read_more_exactly_than_it_is_stored(base: Checkpoint) -> None:
    weights = Converted(base, ["b.weight"], specs, make, read=lambda name: base.read(name) * 3)
    assert weights.read("b.weight.rows").tolist() == [12.0, 12.0]


def test_converted_weight_is_read_and_made_once(tiny_base: Path, tmp_path: Path) -> None:
    class Counted(Checkpoint):
        reads: list[str] = []

        def read(self, name: str) -> Tensor:
            self.reads.append(name)
            return super().read(name)

    weights = Counted(tiny_base)
    chosen = [name for name in weights.names if "experts." in name and name.endswith("weight")]
    view = converted.Converted(
        weights,
        chosen,
        lambda name, spec: {name: Spec("I8", spec.shape), f"{name}.half": Spec("F16", spec.shape)},
        lambda name, weight: {name: weight.to(torch.int8), f"{name}.half": weight.half()},
    )
    write_weights(view, tmp_path)
    assert sorted(weights.reads) == sorted(chosen)
    stored, exact = load_file(tmp_path / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert all(torch.equal(stored[f"{name}.half"], exact[name].half()) for name in chosen)
    assert stored.keys() == exact.keys() | {f"{name}.half" for name in chosen}


def loaded(folder: Path, quantized: bool = True, dtype: str = "float32") -> Any:
    return load.load(Base(model=str(folder), dtype=dtype), quantized=quantized).model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS).logits


IDS = torch.arange(20).view(1, -1)


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
def test_block_fp8_is_dequantized(tiny_model: Any, family: str, block: int) -> None:
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


def test_block_fp8_goes_into_4_bits(tiny_model: Any, tmp_path: Path) -> None:
    folder = as_fp8_checkpoint(tiny_model("deepseek_v3"), block=48)
    exact = loaded(folder, quantized=False)
    exact.save_pretrained(tmp_path / "exact")
    for file in [*folder.glob("*token*"), folder / "chat_template.jinja"]:
        shutil.copy(file, tmp_path / "exact")
    want, got = loaded(tmp_path / "exact"), loaded(folder)
    assert is_in_nf4(got) and audit_bits(got) == audit_bits(want)
    assert all(torch.equal(got.state_dict()[name], tensor) for name, tensor in want.state_dict().items())


def test_lazy_weights_say_their_format_before_they_are_read(tmp_path: Path) -> None:
    weight = torch.randn(6, 10)
    stored, scale = to_fp8(weight, 4)
    save_file({"a": stored, "a_scale_inv": scale, "norm": weight[0].bfloat16()}, tmp_path / "model.safetensors")
    lazy = open_fp8(Checkpoint(tmp_path), (4, 4))
    assert lazy.keys() == {"a", "norm"}
    assert (lazy["a"].get_dtype(), lazy["a"].get_shape()) == ("F32", [6, 10])
    assert (lazy["norm"].get_dtype(), lazy["norm"].get_shape()) == ("BF16", [10])
    assert torch.equal(lazy["a"][...], fp8.dequantize(stored, scale, (4, 4)))
    assert torch.equal(lazy["a"][2:4], lazy["a"][...][2:4]) and torch.equal(lazy["norm"][...], weight[0].bfloat16())


def test_lazy_w4a16_weight_needs_its_scales(tmp_path: Path) -> None:
    q_NK, scale = torch.randint(-8, 8, (3, 16), dtype=torch.int8), torch.rand(3, 2).half()
    tensors = {"a_packed": w4a16.pack(q_NK), "a_scale": scale, "a_shape": torch.tensor([3, 16])}
    save_file(tensors | {"b_packed": w4a16.pack(q_NK), "c": scale.clone()}, tmp_path / "model.safetensors")
    lazy = open_w4a16(Checkpoint(tmp_path))
    assert lazy.keys() == {"a", "c"}
    assert (lazy["a"].get_dtype(), lazy["a"].get_shape()) == ("F16", [3, 16])
    assert torch.equal(lazy["a"][...], w4a16.dequantize(q_NK, scale)) and torch.equal(lazy["c"][1:], scale[1:])
