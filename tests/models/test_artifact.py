"""What is served: a model, an adapter or a GGUF file, and the command for each engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.models import artifact, embedded
from dsr1_tune.models.artifact import Artifact, command_for


def test_artifact_of_nothing_and_of_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such folder"):
        artifact.of(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        artifact.of(tmp_path)


def test_artifact_of_a_model_or_of_the_run_that_trained_it(tiny_base: Path, tmp_path: Path) -> None:
    found = artifact.of(tiny_base)
    assert (found.kind, found.format, found.architecture) == ("model", "none", "DeepseekV3ForCausalLM")
    assert found.path == tiny_base and "model.norm.weight" in found.names
    assert found.has_tokenizer and found.has_template
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ModelError, match="is an unfinished run"):
        artifact.of(tmp_path)
    (tmp_path / "model").symlink_to(tiny_base)
    assert artifact.of(tmp_path).path == tmp_path / "model"
    assert artifact.of(tmp_path).names == found.names


def test_artifact_of_a_run_folder_is_its_adapter(adapter_run: tuple[Path, torch.Tensor]) -> None:
    run, _ = adapter_run
    found = artifact.of(run)
    assert (found.kind, found.path, found.max_rank) == ("adapter", run / "adapter", 2)
    assert found.architecture == "DeepseekV3ForCausalLM" and found.base == str(run.parent / "model")
    assert found.form == "peft-fused"
    (run / "adapter" / "reward_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a reward model"):
        artifact.of(run)


def test_artifact_of_a_gguf_file_is_what_its_header_says(tmp_path: Path) -> None:
    file = embedded.wheel_file()
    if file is None:
        pytest.skip(f"needs SmolLM2's GGUF file: {embedded.MEND}")
    found = artifact.of(file)
    assert (found.kind, found.format, found.architecture) == ("gguf", "gguf", "llama")
    assert "token_embd.weight" in found.names and found.has_tokenizer and found.has_template
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cut\.gguf: is damaged"):
        artifact.of(tmp_path)


def test_artifact_without_an_architecture_or_base_says_so(tiny_base: Path, tmp_path: Path) -> None:
    tree = json.loads((tiny_base / "config.json").read_text())
    del tree["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(tree | {"quantization_config": {"quant_method": "gptq"}}))
    (tmp_path / "model.safetensors").symlink_to(tiny_base / "model.safetensors")
    found = artifact.of(tmp_path)
    assert found.architecture == "" and found.format == "gptq"
    assert not found.has_tokenizer and not found.has_template


def test_adapter_form_is_told_by_its_tensors() -> None:
    def form(*names: str) -> str:
        return Artifact(Path(), "adapter", "", {}, frozenset(names)).form

    assert form("model.layers.0.mlp.experts.lora_A.weight") == "peft-fused"
    assert form("model.layers.0.mlp.experts.base_layer.base_layer.lora_A.weight") == "peft-fused"
    assert form("model.layers.0.mlp.experts.7.up_proj.lora_A.weight") == "per-expert"
    assert form("model.layers.0.self_attn.q_proj.lora_A.weight") == "dense"


def test_command_of_each_engine_names_what_it_serves() -> None:
    model = Artifact(Path("/m"), "model", "", {})
    adapter = Artifact(Path("/a"), "adapter", "", {"r": 8, "rank_pattern": {"x": 64}}, base="org/base")
    where = ["--host", "127.0.0.1", "--port", "8000"]
    assert command_for(model, "vllm") == ["vllm", "serve", "/m", *where]
    assert command_for(model, "transformers") == ["transformers", "serve", "/m", *where]
    assert command_for(model, "sglang")[3:] == ["--model-path", "/m", *where]
    loras = ["--enable-lora", "--max-lora-rank", "64", "--lora-modules", "adapter=/a"]
    assert command_for(adapter, "vllm") == ["vllm", "serve", "org/base", *loras, *where]
    loras = ["--enable-lora", "--max-lora-rank", "64", "--lora-paths", "adapter=/a"]
    assert command_for(adapter, "sglang")[3:] == ["--model-path", "org/base", *loras, *where]
    assert command_for(Artifact(Path("/f.gguf"), "gguf", "", {}), "llama.cpp", port=1)[:4] == [
        "llama-server", "--model", "/f.gguf", "--jinja"
    ]  # fmt: skip


def test_command_for_an_adapter_names_ends_that_its_base_does_not(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    adapter = Artifact(tmp_path, "adapter", "", {"r": 8}, base="org/base")
    assert command_for(adapter, "vllm")[-6:-4] == ["--generation-config", str(tmp_path)]
    assert command_for(adapter, "sglang")[-6:-4] == ["--json-model-override-args", '{"eos_token_id": [1, 7]}']
