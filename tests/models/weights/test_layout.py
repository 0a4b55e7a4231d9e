"""Which stored tensor is which part of a model's parameters."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.layout import Layout
from tests.conftest import TinyModel

FAMILIES = ["deepseek_v3", "deepseek_v2", "glm4_moe", "qwen3_moe", "mixtral", "gpt_oss", "llama"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stored_tensor_is_the_piece_that_it_is_said_to_be(tiny_model: TinyModel, family: str) -> None:
    folder = tiny_model(family)
    stored = Checkpoint(folder)
    layout = Layout.of(meta_model(AutoConfig.from_pretrained(folder)), stored.names)
    state = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    assert set(layout.pieces) == set(stored.names)
    for name, piece in layout.pieces.items():
        assert torch.equal(piece.of(state[piece.parameter]), stored.read(name)), name
    for parameter in state:
        if parameter != "lm_head.weight" or family != "llama":  # which is the embeddings there
            assert sum(piece.of(state[parameter]).numel() for piece in layout.pieces_of(parameter)) == (
                state[parameter].numel()
            )


def test_parts_are_told_of_stored_names(tiny_model: TinyModel) -> None:
    folder = tiny_model("mixtral")
    layout = Layout.of(meta_model(AutoConfig.from_pretrained(folder)), Checkpoint(folder).names)
    assert layout.part("model.layers.0.block_sparse_moe.experts.3.w2.weight") == "routed_experts"
    assert layout.part("model.layers.0.block_sparse_moe.gate.weight") == "router"
    assert layout.is_matrix("model.layers.0.block_sparse_moe.experts.3.w1.weight")
    assert not layout.is_matrix("model.layers.0.block_sparse_moe.gate.weight")
    assert not layout.is_matrix("model.embed_tokens.weight")
    assert layout.part("model.layers.9.eh_proj.weight") == "other"


def test_a_weight_that_is_not_stored_is_named(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen3_moe")
    names = [name for name in Checkpoint(folder).names if "layers.1.self_attn.q_proj" not in name]
    with pytest.raises(ModelError, match=r"1 of the model's weights are not stored .*layers\.1\.self_attn\.q_proj"):
        Layout.of(meta_model(AutoConfig.from_pretrained(folder)), names)
