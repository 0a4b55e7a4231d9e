"""Full fine-tuning: which weights are trained, and the model that is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import locate
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.trained.full import enable_full_training, save_model
from dsr1_tune.moe.anatomy import Anatomy
from tests.conftest import tiny_config


def trained_names(family: str, *only: str, num_hidden_layers: int = 3) -> tuple[set[str], Anatomy]:
    model = meta_model(tiny_config(family, num_hidden_layers=num_hidden_layers))
    enable_full_training(model, only)
    return {name for name, weight in model.named_parameters() if weight.requires_grad}, Anatomy(model)


def test_full_training_takes_all_but_the_routers() -> None:
    trained, part_of = trained_names("deepseek_v3")
    model = meta_model(tiny_config("deepseek_v3", num_hidden_layers=3))
    assert {name for name, _ in model.named_parameters()} - trained == {
        name for name, _ in model.named_parameters() if part_of(name) == "router"
    }


def test_full_training_of_parts_and_of_the_last_layers() -> None:
    trained, part_of = trained_names("qwen3_moe", "attention", "routed_experts")
    assert {part_of(name) for name in trained} == {"attention", "routed_experts"}
    trained, part_of = trained_names("qwen3_moe", "attention", "last:2", "last:1")
    assert trained and all(name.startswith("model.layers.2.") and part_of(name) == "attention" for name in trained)


def test_full_training_refuses_parts_and_layers_that_are_not_there() -> None:
    with pytest.raises(ModelError, match=r"train\.only: the model has no shared_experts\n"):
        trained_names("qwen3_moe", "shared_experts")
    with pytest.raises(ModelError, match=r"has no dense_ffn in its last 1 layer"):
        trained_names("deepseek_v3", "dense_ffn", "last:1")
    with pytest.raises(ModelError, match=r"train\.only: last:9: the model has 3 layers"):
        trained_names("qwen3_moe", "last:9")


def test_saved_model_is_whole_and_for_use(tiny_base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    model.config.use_cache = False
    save_model(model, locate(Base(model=str(tiny_base))), tmp_path / "model")
    assert model.config.use_cache is False
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.config.use_cache is True and (tmp_path / "model" / "chat_template.jinja").is_file()
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
