"""GGUF: what the converter is told, which type each tensor gets, and what llama.cpp makes of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from dsr1_tune.errors import ModelError
from tests.export.gguf.conftest import divergence, in_bf16, quantized

# --- what is written -------------------------------------------------------------------------------------------------


def test_write_makes_a_file_that_llama_cpp_runs(folder: Path, in_q4: tuple[Path, str]) -> None:
    file, said = in_q4
    assert file.name == "qwen-Q4_K_M.gguf"
    assert "llama.cpp loads it" in said
    assert "splits 8 of 8 texts the same way" in said
    assert sorted(path.name for path in file.parent.iterdir() if path.suffix != ".jinja") == [
        "Modelfile", "config.json", "generation_config.json", "lineage.json", file.name, "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert divergence(in_bf16(folder), file) < 0.2
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert types["blk.1.ffn_gate_exps.weight"] == types["blk.1.ffn_up_exps.weight"] == "Q4_K"
    assert types["blk.1.ffn_down_exps.weight"] == "Q5_0"  # rows of 96
    assert types["blk.2.ffn_down_exps.weight"] == "Q8_0"  # a layer that the mix gives more bits
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.1.attn_norm.weight"] == "F32"


def test_write_leaves_a_complete_modelfile(in_q4: tuple[Path, str]) -> None:
    lines = (in_q4[0].parent / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./qwen-Q4_K_M.gguf"
    assert lines[1].startswith('TEMPLATE """{{ if .System }}<|im_start|>system')
    assert 'PARAMETER stop "<|im_end|>"' in lines
    assert "PARAMETER num_ctx 512" in lines


# --- which type ------------------------------------------------------------------------------------------------------


# --- the traps: what the converter is told ---------------------------------------------------------------------------


@pytest.mark.slow
def test_write_refuses_an_unknown_tokenizer_with_its_reason(tiny_model: Any, tmp_path: Path, converter: None) -> None:
    folder = tiny_model("qwen3_moe", norm_topk_prob=True)
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"llama\.cpp does not know how its tokenizer splits words"):
        quantized(folder, tmp_path / "out", "q8_0")
    assert list(tmp_path.glob("*out*")) == []


# --- the engine, and talking to it -----------------------------------------------------------------------------------
