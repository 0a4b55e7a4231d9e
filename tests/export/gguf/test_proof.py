"""A file is only handed over if llama.cpp computes the model of it: right conversions pass, wrong ones do not."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from dsr1_tune.errors import ModelError
from dsr1_tune.export.gguf import proof
from dsr1_tune.export.gguf.write import TEXTS
from dsr1_tune.export.lineage import Stage, read
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.runs.console import Narrator
from tests.export.gguf.conftest import quantized
from tests.families import save_family

TEXT = "\n".join(TEXTS)


def outputs(file: Path) -> Any:
    found = read(file.parent)
    stage = found.stage("quantize") if found else None
    assert isinstance(stage, Stage)
    return stage.facts["outputs"]


def test_proof_is_kept_of_a_right_file(in_16: tuple[Path, str], in_q4: tuple[Path, str]) -> None:
    """Of a smaller type the 16-bit file that it is made of is proved."""
    for file, said in (in_16, in_q4):
        found = outputs(file)
        assert found["proved"] and found["num_tokens"] == proof.NUM_TOKENS
        assert found["kl"] <= 3 * found["rounding_kl"] <= found["bound"]  # rounding explains it
        assert "computes what transformers does" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 0.1},
        {"num_experts_per_tok": 1},
    ],
)
def test_proof_refuses_a_file_of_another_model(
    folder: Path, in_16: tuple[Path, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    """As where the converter passes over what config.json says: the same weights, computed in another way."""
    place = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=r"computes another Qwen3MoeForCausalLM than transformers: KL") as caught:
        proof.check(open_source(place), in_16[0], "bf16", TEXT, quiet())
    assert "nf4" in caught.value.hint


def test_proof_bound_follows_what_rounding_does_to_the_model() -> None:
    """Models whose routers are nearly undecided move more by rounding than others do by a wrong setting."""
    assert proof.Outputs(0.03, 0.003, 256).are_the_models
    assert not proof.Outputs(0.03, 0.0003, 256).are_the_models
    assert proof.Outputs(1e-4, 0.0, 256).are_the_models  # too little to matter
    assert not proof.Outputs(float("nan"), 0.003, 256).are_the_models


def test_proof_that_does_not_fit_into_the_memory_is_said_to_be_missing(
    folder: Path, in_16: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "free_room", lambda: 2**20)
    said = io.StringIO()
    found = proof.check(open_source(folder), in_16[0], "bf16", TEXT, Narrator(Console(file=said, width=300)))
    assert found["outputs"]["proved"] is False and "GiB are free" in found["outputs"]["why"]
    assert "was not proved: a layer in float32 takes" in said.getvalue()


def quiet() -> Narrator:
    return Narrator(Console(file=io.StringIO()))


PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("granitemoe", {}),
        ("granitemoeshared", {}),
        ("cohere2_moe", {}),
        ("olmoe", {}),
        ("lfm2_moe", {}),
        ("mellum", {"rope_parameters": {"full_attention": PLAIN, "sliding_attention": PLAIN}}),
        ("mixtral", {"sliding_window": None}),
        ("gpt_oss", {}),
    ],
)
def test_proof_passes_right_conversions(
    family: str, changes: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path, converter: None
) -> None:
    file, _ = quantized(save_family(tmp_path / family, tiny_tokenizer, family, **changes), tmp_path / "out", "bf16")
    assert outputs(file)["proved"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mellum", {}),  # a theta for each type of layers, of which llama.cpp takes one
        ("afmoe", {"mup_enabled": False}),  # taken for granted
        ("mixtral", {"sliding_window": 32}),  # llama.cpp has none for it
    ],
)
def test_proof_stops_wrong_conversions(
    family: str, changes: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path, converter: None
) -> None:
    with pytest.raises(ModelError, match=r"llama\.cpp computes another"):
        quantized(save_family(tmp_path / family, tiny_tokenizer, family, **changes), tmp_path / "out", "bf16")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (
            "dots1",
            {},
            r"llama\.cpp \(xllamacpp .*\) does not run this Dots1ForCausalLM: it ended with code -6: .*\.cpp:\d+",
        ),
        ("hy_v3", {}, r"no way to make a GGUF of HYV3ForCausalLM: it is newer than the gguf library .* lacks HY_V3"),
        ("minimax", {}, "no way to make a GGUF of MiniMaxForCausalLM: it does not know this architecture"),
    ],
)
def test_failures_name_the_architecture_and_who_refused(
    family: str, changes: dict[str, Any], said: str, tiny_tokenizer: Any, tmp_path: Path, converter: None
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        quantized(save_family(tmp_path / family, tiny_tokenizer, family, **changes), tmp_path / "out", "bf16")
    assert "nf4" in caught.value.hint


@pytest.mark.slow
def test_qwen3_next_converts_without_layers_that_predict_further_tokens(
    tiny_tokenizer: Any, tmp_path: Path, converter: None
) -> None:
    """Whether it has them or not: the converter would count them where there are none."""
    kinds = [*["linear_attention"] * 3, "full_attention"]  # as llama.cpp takes for granted
    changes = {"mlp_only_layers": [], "num_hidden_layers": 4, "layer_types": kinds}
    folder = save_family(tmp_path / "next", tiny_tokenizer, "qwen3_next", **changes)
    assert outputs(quantized(folder, tmp_path / "without", "bf16")[0])["proved"]
    weights = load_file(folder / "model.safetensors")
    extra = {"mtp.fc.weight": torch.randn(64, 128), "mtp.norm.weight": torch.ones(64)}
    save_file(weights | extra, folder / "model.safetensors", metadata={"format": "pt"})
    file, said = quantized(folder, tmp_path / "with", "bf16")
    assert outputs(file)["proved"] and "further tokens (2 tensors) are left out" in said
