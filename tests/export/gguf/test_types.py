"""Which GGUF type each tensor gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader

from dsr1_tune.export.gguf.types import part_of, pick


@pytest.mark.parametrize(
    ("name", "shape", "kind", "everything", "expected"),
    [
        ("blk.9.ffn_up_exps.weight", (8, 64, 256), "q4_k_m", False, "Q4_K"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 256), "q4_k_m", False, "Q6_K"),
        ("blk.4.ffn_down_exps.weight", (8, 64, 256), "q4_k_m", False, "Q4_K"),
        ("blk.31.ffn_down_exps.weight", (8, 64, 256), "q5_k_m", False, "Q6_K"),
        ("blk.0.ffn_down_exps.weight", (8, 64, 256), "q3_k_m", False, "Q5_K"),
        ("blk.5.ffn_down_exps.weight", (8, 64, 256), "q3_k_m", False, "Q4_K"),
        ("blk.5.ffn_gate_exps.weight", (8, 64, 96), "q3_k_m", False, "IQ4_NL"),
        ("blk.5.ffn_gate_exps.weight", (8, 64, 96), "q8_0", False, "Q8_0"),
        ("blk.5.ffn_gate_exps.weight", (8, 64, 48), "q4_k_m", False, None),
        ("blk.5.attn_q.weight", (64, 256), "q4_k_m", False, "Q8_0"),
        ("blk.5.attn_q.weight", (64, 256), "q4_k_m", True, "Q4_K"),
        ("blk.0.attn_v.weight", (64, 256), "q4_k_m", True, "Q6_K"),
        ("blk.5.ffn_gate_shexp.weight", (64, 256), "q4_k_m", True, "Q4_K"),
        ("output.weight", (512, 256), "q4_k_m", True, "Q6_K"),
        ("blk.5.ffn_gate_inp.weight", (8, 256), "q4_k_m", True, None),
        ("blk.5.exp_probs_b.bias", (8,), "q4_k_m", True, None),
        ("blk.5.attn_norm.weight", (256,), "q4_k_m", True, None),
        ("blk.5.attn_q.bias", (256,), "q4_k_m", True, None),
    ],
)
def test_pick_gives_the_type_of_a_tensor(
    name: str, shape: tuple[int, ...], kind: str, everything: bool, expected: str | None
) -> None:
    assert pick(name, shape, kind, everything, num_layers=32) == expected


def test_part_of_knows_every_matrix_of_a_file(in_q4: tuple[Path, str]) -> None:
    parts = {part_of(tensor.name) for tensor in GGUFReader(in_q4[0]).tensors if len(tensor.shape) > 1}
    assert parts == {"attention", "routed_experts", "router", "embeddings"}
