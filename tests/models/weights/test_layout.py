"""Which stored tensor is which part of a model's parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.layout import Layout
from tests.conftest import TinyModel, tiny_config

FAMILIES = ["deepseek_v3", "deepseek_v2", "glm4_moe", "qwen3_moe", "mixtral", "gpt_oss", "llama"]


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_names_the_piece_that_each_stored_tensor_is(tiny_model: TinyModel, family: str) -> None:
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


def test_layout_tells_the_part_of_stored_names(tiny_model: TinyModel) -> None:
    folder = tiny_model("mixtral")
    layout = Layout.of(meta_model(AutoConfig.from_pretrained(folder)), Checkpoint(folder).names)
    assert layout.part("model.layers.0.block_sparse_moe.experts.3.w2.weight") == "routed_experts"
    assert layout.part("model.layers.0.block_sparse_moe.gate.weight") == "router"
    assert layout.is_matrix("model.layers.0.block_sparse_moe.experts.3.w1.weight")
    assert not layout.is_matrix("model.layers.0.block_sparse_moe.gate.weight")
    assert not layout.is_matrix("model.embed_tokens.weight")
    assert layout.part("model.layers.9.eh_proj.weight") == "other"


def test_layout_names_a_weight_that_is_not_stored(tiny_model: TinyModel) -> None:
    folder = tiny_model("qwen3_moe")
    names = [name for name in Checkpoint(folder).names if "layers.1.self_attn.q_proj" not in name]
    with pytest.raises(ModelError, match=r"1 of the model's weights are not stored .*layers\.1\.self_attn\.q_proj"):
        Layout.of(meta_model(AutoConfig.from_pretrained(folder)), names)


@settings(max_examples=12)
@given(
    st.sampled_from(["qwen3_moe", "mixtral", "deepseek_v3", "gpt_oss"]),
    st.integers(2, 6),
    st.sampled_from([8, 24, 40]),
    st.sampled_from([16, 48]),
    st.integers(0, 2**31),
)
def test_layout_finds_the_parts_of_experts_of_any_number_and_shape(
    family: str, experts: int, wide: int, width: int, seed: int
) -> None:
    """transformers' own saving takes the fused experts apart: each tensor that it makes is the view that is named."""
    from transformers.core_model_loading import revert_weight_conversion

    number = {"qwen3_moe": "num_experts", "deepseek_v3": "n_routed_experts"}.get(family, "num_local_experts")
    inside = {"qwen3_moe": "moe_intermediate_size", "deepseek_v3": "moe_intermediate_size"}.get(
        family, "intermediate_size"
    )
    config = tiny_config(family, hidden_size=width, num_experts_per_tok=2, **{number: experts, inside: wide})
    meta = meta_model(config)
    draw = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(tensor.shape, generator=draw)
        for name, tensor in meta.state_dict().items()
        if ".experts." in name
    }
    stored = revert_weight_conversion(meta, dict(state))
    rest = [name for name in meta.state_dict() if ".experts." not in name]
    layout = Layout.of(meta, [*stored, *revert_weight_conversion(meta, {n: meta.state_dict()[n] for n in rest})])
    for name, tensor in stored.items():
        piece = layout.pieces[name]
        assert torch.equal(piece.of(state[piece.parameter]), tensor), name
        assert layout.part(name) == "routed_experts"
    for name, fused in state.items():
        pieces = layout.pieces_of(name)
        assert sum(piece.of(fused).numel() for piece in pieces) == fused.numel()
        if pieces[0].expert is not None:
            assert {piece.expert for piece in pieces} == set(range(experts))
