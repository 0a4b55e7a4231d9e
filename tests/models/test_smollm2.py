"""The Llama that the embedded base is made from, as it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.models import smollm2


def test_read_llama_reads_the_hubs_folder_like_the_wheel(tiny_model: Any, tiny_tokenizer: Any) -> None:
    folder = tiny_model("llama")
    source = smollm2.read_llama(folder, "the Hub")
    assert (source.llama.num_layers, source.llama.width, source.llama.head_dim) == (2, 64, 16)
    assert source.llama.weights["model.norm.weight"].dtype == torch.float32
    assert source.tokenizer.chat_template == tiny_tokenizer.chat_template


def test_read_gguf_says_that_a_wheel_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "damaged.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="is not the GGUF file expected") as caught:
        smollm2.read_gguf(file)
    assert "--force-reinstall" in caught.value.hint


@pytest.mark.parametrize(
    ("gguf", "transformers"),
    [
        ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
        ("blk.29.ffn_norm.weight", "model.layers.29.post_attention_layernorm.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ],
)
def test_gguf_names_become_transformers_names(gguf: str, transformers: str) -> None:
    assert smollm2._hf_name(gguf) == transformers


def test_gguf_rotary_pairs_become_halves() -> None:
    # One head of six rows, as pairs (0, 1), (2, 3), (4, 5).
    rows = torch.arange(12.0).view(12, 1)
    assert smollm2._halves_not_pairs(rows, 2).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
