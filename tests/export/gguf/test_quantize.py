"""llama.cpp's smaller types: every expert is counted, and the numbers are the library's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from dsr1_tune.models.llama_cpp import ggml


def test_quantize_counts_every_expert_and_its_error(in_q4: tuple[Path, str]) -> None:
    stage = json.loads((in_q4[0].parent / "lineage.json").read_text())["stages"][-1]
    groups = {group["part"]: group for group in stage["facts"]["groups"]}
    experts = groups["routed_experts"]
    assert experts["num_quantized"] == experts["num_tensors"] == 3 * 4 * 3
    assert experts["num_weights"] == 3 * 4 * 3 * 96 * 256
    assert experts["bits"] == pytest.approx((6 * 4.5 + 2 * 5.5 + 8.5) / 9, abs=1e-3)
    assert 0.04 < experts["relative_error"] < experts["worst_error"] < 0.09
    assert 0.003 < groups["attention"]["relative_error"] < 0.008
    assert stage["facts"]["types"]["Q4_K"] == 6
    assert "router" not in groups


def test_quantize_gives_the_numbers_of_the_library(in_q4: tuple[Path, str], folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    tensor = next(tensor for tensor in GGUFReader(in_q4[0]).tensors if tensor.name == "blk.2.ffn_up_exps.weight")
    blocks = torch.from_numpy(tensor.data.copy())
    for expert in range(4):
        exact = stored[f"model.layers.2.mlp.experts.{expert}.up_proj.weight"].bfloat16()
        assert torch.equal(blocks[expert], ggml.quantize(exact, "Q4_K"))


@pytest.mark.parametrize("kind", ggml.TYPES)
def test_quantized_blocks_come_back(kind: str) -> None:
    matrix = torch.randn(6, 512, generator=torch.Generator().manual_seed(0))
    back = ggml.dequantize(ggml.quantize(matrix, kind), kind)
    assert back.shape == matrix.shape
    assert float((back - matrix).norm() / matrix.norm()) < {"Q8_0": 0.01, "Q6_K": 0.03, "Q3_K": 0.2}.get(kind, 0.1)


def test_quantize_keeps_what_the_file_says_of_the_model(in_q4: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    reader = GGUFReader(in_q4[0])
    said = {name: field.contents() for name, field in reader.fields.items()}
    assert said["general.file_type"] == 15
    assert said["general.name"].lower() == "qwen"
    assert said["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    assert len(said["tokenizer.ggml.tokens"]) == 258
    assert said["qwen3moe.expert_count"] == 4
