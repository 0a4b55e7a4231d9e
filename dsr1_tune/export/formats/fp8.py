"""DeepSeek's block-FP8: E4M3 with a scale for 128 × 128 weights, as vLLM, SGLang and transformers read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from torch import Tensor

from dsr1_tune.config.export import Quantize
from dsr1_tune.export.formats.encoding import Encoding, distance, write_encoded
from dsr1_tune.export.formats.format import Format
from dsr1_tune.export.weights.accounting import Group, Quantized, chosen
from dsr1_tune.models.weights.checkpoint import Spec
from dsr1_tune.quant.fp8 import dequantize, to_blocks

if TYPE_CHECKING:
    from dsr1_tune.export.weights.source import Source
    from dsr1_tune.runs.console import Narrator

BLOCK = (128, 128)


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the source's weights, config and tokenizer to `folder`, its matrices in block-FP8.

    Experts that one tensor holds are taken apart: scales are of a matrix each, and so engines read them.
    """
    source = source.taken_apart(narrator.say)
    names = chosen(source.layout, settings.all)
    # A base in block-FP8 is not first rounded to 16 bits: what is not merged into comes out as it was.
    exact = getattr(source.weights, "exact", None)
    return write_encoded(Encoding(names, _specs, _encode, _config, exact), source, folder, narrator)


def _specs(name: str, spec: Spec) -> dict[str, Spec]:
    rows, cols = spec.shape
    blocks = (-(-rows // BLOCK[0]), -(-cols // BLOCK[1]))
    return {name: Spec("F8_E4M3", (rows, cols)), f"{name}_scale_inv": Spec("F32", blocks)}


def _encode(name: str, weight: Tensor) -> tuple[dict[str, Tensor], float]:
    # What was merged into a base that lay in float8 before is mostly less than half a step.
    stored, scale = to_blocks(weight, BLOCK, seed=crc32(name.encode()))
    return {name: stored, f"{name}_scale_inv": scale}, distance(weight, dequantize(stored, scale, BLOCK))


def _config(skipped: list[str], groups: tuple[Group, ...]) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
        "modules_to_not_convert": skipped,
    }


FORMAT = Format(
    name="fp8",
    bits=8.0,
    write=write,
    is_stored_as=lambda stored: stored.get("quant_method") == "fp8",
    loads_in=frozenset({"vllm", "sglang", "transformers"}),
    next_step="vLLM, SGLang and transformers read it. First: dsr1-tune check-serve {folder} --engine vllm",
    gentler=lambda settings: ("--to int8", "--to gguf --set quantize.gguf=q8_0"),
)
