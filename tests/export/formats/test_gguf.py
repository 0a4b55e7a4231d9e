"""GGUF as a format: its types as variants, the larger ones gentler, the plain ones not quantized at all."""

from __future__ import annotations

import pytest

from dsr1_tune.config import Quantize
from dsr1_tune.export.formats.gguf import FORMAT


@pytest.mark.parametrize(
    ("kind", "larger"),
    [("q4_k_m", ["q5_k_m", "q6_k", "q8_0", "bf16"]), ("q8_0", ["bf16"]), ("bf16", []), ("f16", [])],
)
def test_gguf_gentler_types_are_the_larger_ones(kind: str, larger: list[str]) -> None:
    settings = Quantize.model_validate({"to": "gguf", "gguf": kind})
    assert [flags.split("=")[1] for flags in FORMAT.gentler(settings)] == larger
    assert FORMAT.keeps(settings) == (kind in ("bf16", "f16"))
    assert FORMAT.label(settings) == f"gguf-{kind}"


def test_gguf_loads_in_llama_cpp_alone() -> None:
    assert FORMAT.loads_in == {"llama.cpp"} and set(FORMAT.refused_by) == {"vllm", "sglang", "transformers"}
