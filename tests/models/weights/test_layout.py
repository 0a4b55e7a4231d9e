"""Which stored tensor is which part of a model's parameters."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.models.weights.layout import Layout, Piece, check_conversions, stores_fused
from dsr1_tune.train import lora
from tests.conftest import TinyModel, tiny_config
from tests.families import config_of, save_family

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


@pytest.mark.parametrize(
    "family",
    [
        "inkling2_text",
        "kimi_linear",
        "bailing_hybrid",
        "qwen4_exp_text",
        "zaya",
        "nemotron_h",
    ],
)
def test_layout_learns_what_is_computed_of_stored_tensors_from_their_numbers(tmp_path: Path, family: str) -> None:
    """Gate and up that alternate, three tensors that make one convolution, tables in shards: there and back."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)  # no two numbers the same
    model.save_pretrained(tmp_path)
    stored, state = Checkpoint(tmp_path), model.state_dict()
    layout = Layout.of(meta_model(model.config), stored.names)
    assert set(layout.pieces) == set(stored.names)
    made = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for name, piece in layout.pieces.items():
        assert torch.equal(piece.of(state[piece.parameter]), stored.read(name)), name
        piece.put(stored.read(name), made[piece.parameter])
    tied = dict(model.all_tied_weights_keys or {})
    assert all(torch.equal(made[name], tensor) for name, tensor in state.items() if name not in tied)
    if family == "inkling2_text":
        assert any(piece.is_alternating for piece in layout.pieces.values())
    assert not any(layout.is_matrix(name) for name in layout.pieces if "conv1d" in name or "A_log" in name)


def test_layout_reads_alternating_rows_however_they_are_stored() -> None:
    fused, matrix = torch.randn(3, 8, 5), torch.randn(8, 5)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    assert torch.equal(Piece("a", "a", is_alternating=True).of(fused), fused[:, order])
    assert torch.equal(Piece("a", "a", is_alternating=True, is_transposed=True).of(fused), fused[:, order].mT)
    assert torch.equal(Piece("a", "a", 1, is_alternating=True).of(fused), fused[1, order])
    for piece, whole in (
        (Piece("a", "a", is_alternating=True, is_transposed=True), fused),
        (Piece("a", "a", is_alternating=True), fused),
        (Piece("a", "a", is_transposed=True), matrix),
        (Piece("a", "a", span=(0, 8)), matrix),
    ):
        back = torch.zeros_like(whole)
        piece.put(piece.of(whole).clone(), back)
        assert torch.equal(back, whole), piece


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


@pytest.mark.parametrize("family", ["gemma4", "inkling2_text", "qwen3_moe"])
def test_layout_of_experts_in_one_tensor_taken_apart_is_that_of_their_names(
    tmp_path: Path, tiny_tokenizer: Any, family: str
) -> None:
    folder = save_family(tmp_path / "base", tiny_tokenizer, family)
    config = AutoConfig.from_pretrained(folder).get_text_config(decoder=True)
    model, names = meta_model(config), list(Checkpoint(folder).names)
    layout = Layout.of(model, names)
    assert stores_fused(model) is (family != "qwen3_moe")
    assert len(layout.together) == (0 if family == "qwen3_moe" else 4) and layout.apart == ()
    apart = layout.taken_apart()
    assert all(len(apart.shapes[p.parameter]) == 3 and p.expert is not None for n, p in apart.pieces.items()
               if apart.part(n) == "routed_experts")  # fmt: skip
    again = Layout.of(model, apart.pieces)
    assert again.pieces == apart.pieces and again.put_together().pieces == layout.pieces
    if family != "qwen3_moe":
        missing = set(apart.pieces) - {layout.together[0].matrices[3].stored}
        with pytest.raises(ModelError, match="1 matrices of experts are missing"):
            Layout.of(model, missing)


def _qkv_in_one(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Have transformers store q, k and v of a family in one tensor, as it does those of some."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Split, WeightConverter

    known = conversion_mapping.get_checkpoint_conversion_mapping(family) or []
    one = WeightConverter("self_attn.qkv", [f"self_attn.{part}_proj" for part in "qkv"], operations=[Split(dim=0)])
    monkeypatch.setitem(conversion_mapping._checkpoint_conversion_mapping_cache, family, [*known, one])


def test_conversions_that_are_not_known_are_told_of_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in FAMILIES:
        check_conversions(meta_model(tiny_config(family)))
    _qkv_in_one(monkeypatch, "qwen3_moe")
    model = meta_model(tiny_config("qwen3_moe"))
    with pytest.raises(ModelError, match=r"^qwen3_moe: model\.layers\.0\.self_attn\.qkv\.weight is made of"):
        check_conversions(model)


def test_what_cannot_be_merged_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, tiny_model: TinyModel, configure_lora: Any, tmp_path: Path
) -> None:
    model = tiny_model("qwen3_moe")
    _qkv_in_one(monkeypatch, "qwen3_moe")
    said = StringIO()
    config = configure_lora(tmp_path / "run", base=Base(model=str(model)), max_steps=1)
    lora.run(config, None, Console(file=said, width=1000))
    before, _, after = said.getvalue().partition("Training")
    assert "nothing can be merged into it; what is trained over it can be used beside it" in before and after
