"""What the converter reads: nothing left to guess, and what llama.cpp would run wrongly refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.errors import ModelError
from dsr1_tune.export.gguf import source as gguf_source
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.runs.console import Narrator
from dsr1_tune.runs.folder import RunFolder
from tests.export.gguf.conftest import YARN, add_further_layer, quantized


def test_config_says_that_a_router_is_a_sigmoid(tiny_model: Any) -> None:
    config = gguf_source.config_for_llama_cpp(open_source(tiny_model("deepseek_v3")))
    assert (config["scoring_func"], config["topk_method"]) == ("sigmoid", "noaux_tc")
    assert "scoring_func" not in gguf_source.config_for_llama_cpp(open_source(tiny_model("qwen3_moe", "softmax")))


@pytest.mark.parametrize("is_old", [True, False])
def test_config_says_rope_once_and_in_the_new_names(is_old: bool, tiny_model: Any) -> None:
    folder = tiny_model("deepseek_v3", max_position_embeddings=512)
    config = json.loads((folder / "config.json").read_text())
    if is_old:
        config |= {"rope_parameters": None, "rope_theta": 5000.0, "rope_scaling": {"type": "yarn", **YARN}}
    else:
        config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 5000.0, **YARN}
    (folder / "config.json").write_text(json.dumps(config))
    told = gguf_source.config_for_llama_cpp(open_source(folder))
    assert "rope_scaling" not in told
    assert told["rope_theta"] == 5000.0
    rope = told["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"]) == ("yarn", 5000.0)
    assert (rope["factor"], rope["mscale_all_dim"]) == (16.0, 1.0)


def test_config_counts_further_layers_only_if_they_are_there(tiny_model: Any) -> None:
    folder = tiny_model("deepseek_v3", num_nextn_predict_layers=1)
    assert gguf_source.config_for_llama_cpp(open_source(folder))["num_nextn_predict_layers"] == 0
    add_further_layer(folder)
    source = open_source(folder)
    assert gguf_source.config_for_llama_cpp(source)["num_nextn_predict_layers"] == 1
    assert "model.layers.2.eh_proj.weight" in gguf_source.further_layers(source)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "biases in its latent attention"),
        ({"rope_interleave": False}, "positions in halves"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, **YARN, "mscale": 0.7}}, "mscale"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 1.0,
             "original_max_position_embeddings": 512, "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}},
            "longrope",
        ),
    ],
)  # fmt: skip
def test_source_that_llama_cpp_cannot_run_is_refused_at_once(
    changes: dict[str, Any], named: str, tiny_model: Any, tmp_path: Path
) -> None:
    folder = tiny_model("deepseek_v3", **changes)
    with pytest.raises(ModelError, match=named) as caught:
        quantized(folder, tmp_path / "out", "q8_0")
    assert "nf4" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_source_whose_expert_weights_do_not_sum_to_1_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="norm_topk_prob: false"):
        quantized(tiny_model("qwen3_moe", norm_topk_prob=False), tmp_path / "out", "q8_0")
    assert not (tmp_path / "out").exists()


def test_source_is_refused_where_the_disk_is_too_small(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("dsr1_tune.export.gguf.source.shutil.disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="GiB of disk"):
        quantized(folder, tmp_path / "out", "q8_0")
    assert not (tmp_path / "out").exists()


def test_prepare_links_stored_weights_and_writes_merged_ones(
    folder: Path, tiny_run: Callable[..., RunFolder], tmp_path: Path
) -> None:
    quiet = Narrator(Console(file=io.StringIO()))
    gguf_source.prepare(open_source(folder), tmp_path / "linked", quiet)
    assert (tmp_path / "linked" / "model.safetensors").readlink() == folder / "model.safetensors"
    run = tiny_run("qwen3_moe", "lora")
    gguf_source.prepare(open_source(run.path), tmp_path / "written", quiet)
    assert not (tmp_path / "written" / "model.safetensors").is_symlink()
