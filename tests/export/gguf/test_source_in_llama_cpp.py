"""GGUF in real llama.cpp: merged adapters, and what it would run wrongly if it were not told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from rich.console import Console
from safetensors.torch import load_file, save_file

from dsr1_tune.errors import ModelError
from dsr1_tune.export.gguf import quantize
from dsr1_tune.export.gguf import source as gguf_source
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.quant import fp8
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.folder import RunFolder
from tests.conftest import save_tiny
from tests.export.gguf.conftest import YARN, add_further_layer, divergence, in_bf16, quantized

V3 = {"q_lora_rank": 32}
"""llama.cpp's DeepSeek-V3 always has low-rank queries."""
V2 = {"num_hidden_layers": 27}
"""llama.cpp knows DeepSeek-V2-Lite, which has none, by its 27 layers."""
QWEN = {"norm_topk_prob": True}
"""llama.cpp makes the weights of every Qwen3-MoE's experts sum to 1."""


@pytest.mark.slow
@pytest.mark.parametrize(("family", "changes"), [("deepseek_v3", V3), ("deepseek_v2", V2), ("qwen3_moe", QWEN)])
def test_merged_adapter_runs_in_llama_cpp(
    family: str, changes: dict[str, Any], tiny_run: Callable[..., RunFolder], tmp_path: Path, converter: None
) -> None:
    schedule = {"max_steps": 3, "learning_rate": 0.1, "max_tokens": 128}
    run = tiny_run(family, "lora", changes, schedule=schedule)
    quiet = Narrator(Console(file=io.StringIO()))
    file, _ = quantized(run.path, tmp_path / "bf16", "bf16")
    in_8 = tmp_path / "q8.gguf"
    quantize.quantize(file, in_8, "q8_0", False, quiet)
    gguf_source.prepare(open_source(run.path), tmp_path / "merged", quiet)
    merged = in_bf16(tmp_path / "merged")
    exact, rounded = divergence(merged, file), divergence(merged, in_8)
    assert exact <= 1e-3
    assert rounded <= 5e-3
    # The adapter is in the file, and the bounds tell something.
    base, adapted = in_bf16(run.path.parent / "base"), load_with_adapter(run.path).model
    assert divergence(base, file) > 10 * max(exact, divergence(adapted, file))


def save_sensitive_v3(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A V3 whose routing matters: balancing biases that change the choice, and experts that weigh much."""
    save_tiny(folder, tokenizer, "deepseek_v3", **V3, n_routed_experts=8, num_hidden_layers=4, **changes)
    weights = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(3)
    for name, weight in weights.items():
        if "e_score_correction_bias" in name:
            weights[name] = torch.randn(weight.shape, generator=draw) / 2
        elif ".experts." in name and "down_proj" in name:
            weights[name] = weight * 3
        elif name == "lm_head.weight":
            weights[name] = weight * 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
def test_router_scores_by_sigmoid_in_llama_cpp_too(
    tiny_tokenizer: Any, tmp_path: Path, converter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_sensitive_v3(tmp_path / "v3", tiny_tokenizer)
    model = in_bf16(folder)
    right = divergence(model, quantized(folder, tmp_path / "right", "bf16")[0])
    completed = gguf_source.config_for_llama_cpp

    def as_transformers_wrote_it(source: Any) -> dict[str, Any]:
        return {name: value for name, value in completed(source).items() if name not in ("scoring_func", "topk_method")}

    monkeypatch.setattr(gguf_source, "config_for_llama_cpp", as_transformers_wrote_it)
    with pytest.raises(ModelError, match=r"llama\.cpp computes another DeepseekV3ForCausalLM"):
        quantized(folder, tmp_path / "wrong", "bf16")
    assert right <= 1e-3


@pytest.mark.slow
def test_partial_fp8_blocks_and_further_layers_in_llama_cpp(
    tiny_tokenizer: Any, tmp_path: Path, converter: None
) -> None:
    folder = save_tiny(tmp_path / "v3", tiny_tokenizer, "deepseek_v3", **V3)
    add_further_layer(folder)
    stored = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "_proj" in name and weight.dim() == 2:
            stored[name], stored[f"{name}_scale_inv"] = fp8.to_blocks(weight, (48, 48))
        else:
            stored[name] = weight if "correction" in name else weight.bfloat16()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [48, 48], "fmt": "e4m3"}
    (folder / "config.json").write_text(json.dumps(config))
    file, said = quantized(folder, tmp_path / "out", "bf16")
    assert "further tokens (" in said
    assert "left out" in said
    assert not any(tensor.name.startswith("blk.2.") for tensor in GGUFReader(file).tensors)
    assert divergence(in_bf16(folder), file) <= 1e-3


@pytest.mark.slow
def test_stretched_rope_in_llama_cpp(tiny_tokenizer: Any, tmp_path: Path, converter: None) -> None:
    folder = save_sensitive_v3(tmp_path / "v3", tiny_tokenizer)
    plain = in_bf16(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": None, "rope_theta": 10000.0, "rope_scaling": {"type": "yarn", **YARN}}
    (folder / "config.json").write_text(json.dumps(config))
    file, _ = quantized(folder, tmp_path / "out", "bf16")
    right = divergence(in_bf16(folder), file, 300)
    assert right <= 1e-3
    assert divergence(plain, file, 300) > 20 * right
