"""Quantized folders of others read while loading: the same weights as those of their 16-bit copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.models.load import load, locate
from dsr1_tune.models.weights.stored_format import StoredFormat
from tests import quantized_folders as packed

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
