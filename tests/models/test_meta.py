"""A model without weights, and the stack of its layers."""

from __future__ import annotations

import pytest

from dsr1_tune.models.meta import layer_stack, meta_model
from tests.conftest import tiny_config


@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral", "gpt_oss", "llama"])
def test_meta_model_has_every_parameter_and_no_memory(family: str) -> None:
    config = tiny_config(family)
    model = meta_model(config)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.config is not config and model.config.to_dict().items() >= {"num_hidden_layers": 2}.items()
    assert layer_stack(model) == "model.layers" and len(model.get_submodule("model.layers")) == 2
