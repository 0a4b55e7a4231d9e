"""Quantized folders of others read while loading: the same weights as those of their 16-bit copies."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.export.dequantize import run as dequantize
from dsr1_tune.export.weights.source import open_base
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.load import load, load_located, locate
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.converted import open_fp8
from dsr1_tune.models.weights.index import INDEX, read_json
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.models.weights.stored_format import StoredFormat
from dsr1_tune.quant import scaled
from tests import quantized_folders as packed
from tests.families import save_family


def quiet() -> Console:
    return Console(file=io.StringIO())


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gptq": (packed.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True}),
    "awq": (packed.awq, {"quant_method": "awq", "bits": 4, "group_size": 32}),
    "fp8": (packed.fp8, {"quant_method": "fp8", "activation_scheme": "static"}),
    "nvfp4": (packed.nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "compressed-tensors": (packed.int8, {"quant_method": "compressed-tensors", "format": "int-quantized"}),
}


@pytest.mark.parametrize("form", [*FORMS, "mxfp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_folder_is_loaded_as_its_copy_would_be(form: str, dtype: str, tiny_model: Any) -> None:
    if form == "mxfp4":
        folder = tiny_model("gpt_oss", num_hidden_layers=1)
        expected = packed.as_published_gpt_oss(folder)
    else:
        folder = tiny_model("llama", num_hidden_layers=1)
        make, told = FORMS[form]
        expected = packed.requantize(folder, make, told, **({"modelopt": True} if form == "nvfp4" else {}))
    assert StoredFormat.in_folder(folder).value == form
    model = load(Base(model=str(folder), dtype=dtype)).model
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight.to(model.dtype)), name
    assert getattr(model.config, "quantization_config", None) is None


def test_the_parameters_of_a_quantized_folder_are_those_of_the_model(tiny_model: Any) -> None:
    from dsr1_tune.models.folder import ModelFolder

    folder = tiny_model("gpt_oss")
    before = ModelFolder(folder, "before").check_weights()
    packed.as_published_gpt_oss(folder)
    assert ModelFolder(folder, "after").check_weights() == before
    assert locate(Base(model=str(folder))).config.model_type == "gpt_oss"


def test_deepseek_v4_as_it_is_published_is_multiplied_out(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Its config says what DeepSeek-V3's says; its scales are called otherwise, and its experts are in FP4."""
    folder = save_family(tmp_path / "base", tiny_tokenizer, "deepseek_v4")
    expected = packed.as_published_deepseek_v4(folder)
    loaded = load(Base(model=str(folder), dtype="float32"))
    layout = Layout.of(loaded.model, Checkpoint(folder).names)
    state = loaded.model.state_dict()
    for name, weight in expected.items():
        piece = layout.pieces[name]
        assert torch.equal(piece.of(state[piece.parameter]), weight), name
    # As a model on the Hub is found: its config is read before its weights are there, of which some come first.
    early = tmp_path / "early"
    shutil.copytree(folder, early, ignore=shutil.ignore_patterns("*.safetensors"))
    (early / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    shutil.copy(folder / "model.safetensors", early / "1.safetensors")
    config = ModelFolder(early, "early").read_config()
    again = load_located(replace(locate(Base(model=str(folder))), config=config), "float32").model.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    with pytest.raises(ModelError, match=r"is in float8, and no .*weight_scale_inv is stored beside it"):
        open_fp8(Checkpoint(folder), (48, 48))
    assert "expert_dtype" not in read_json(dequantize(folder, tmp_path / "copy", console=quiet()) / "config.json")
    with pytest.raises(ModelError, match="is quantized already") as refused:
        open_base(locate(Base(model=str(folder))))
    assert f"dsr1-tune dequantize {folder}" in str(refused.value.hint)


def test_a_block_of_scales_is_not_guessed_where_the_last_may_overhang() -> None:
    """Blocks of 128 over 192 rows: two rows of scales, which 96 would divide."""
    assert scaled.block_of((192, 256), (2, 2)) is None
    assert scaled.block_of((192, 256), (2, 2), (128, 128)) == (128, 128)
    assert scaled.block_of((256, 256), (2, 2)) == (128, 128)
    assert scaled.block_of((192, 96), (192, 3)) == (1, 32) and scaled.block_of((192, 96), (192, 1)) == (1, 96)


def test_what_the_config_of_a_text_model_says_counts() -> None:
    told = {"quant_method": "gptq", "bits": 4}
    assert StoredFormat.of({"model_type": "a", "text_config": {"quantization_config": told}}) is StoredFormat.GPTQ
