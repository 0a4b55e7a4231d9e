"""DeepSeek's block-FP8: E4M3 with a scale for 128 × 128 weights, as vLLM, SGLang and transformers read it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.accounting import Counting, Quantized, check_all, chosen, skipped_modules
from dsr1_tune.export.weights.progress import counted
from dsr1_tune.export.weights.source import Source, copy_sidecars
from dsr1_tune.models.weights.checkpoint import Spec, write_weights
from dsr1_tune.models.weights.converted import Converted
from dsr1_tune.quant.fp8 import dequantize, to_blocks
from dsr1_tune.runs.console import Narrator

BLOCK = (128, 128)


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the source's weights, config and tokenizer to `folder`, its matrices in block-FP8.

    Raises ModelError for experts that are not stored as a matrix each.
    """
    names = chosen(source.layout, settings.all)
    if fused := sorted(name for name in names if len(source.weights.spec(name).shape) != 2):
        raise ModelError(
            f"{source.name}: {fused[0]} holds the matrices of several experts, which block-FP8 has no place for",
            hint="choose another format: --to nf4, int8 or gguf",
        )
    counting = Counting(source.layout)

    def make(name: str, weight: Tensor) -> dict[str, Tensor]:
        stored, scale = to_blocks(weight, BLOCK)
        counting.compare(name, weight, dequantize(stored, scale, BLOCK), stored.nbytes + scale.nbytes)
        return {name: stored, f"{name}_scale_inv": scale}

    # A base in block-FP8 is not first rounded to 16 bits: what is not merged into comes out as it was.
    exact = getattr(source.weights, "exact", None)
    weights = Converted(source.weights, names, _specs, make, exact)
    with counted(narrator, weights) as advance:
        write_weights(weights, folder, advance)
    check_all(names, counting.names)
    stored_as = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
        "modules_to_not_convert": skipped_modules(source, names),
    }
    copy_sidecars(source, folder, {**source.config, "quantization_config": stored_as})
    return Quantized(counting.groups())


def _specs(name: str, spec: Spec) -> dict[str, Spec]:
    rows, cols = spec.shape
    blocks = (-(-rows // BLOCK[0]), -(-cols // BLOCK[1]))
    return {name: Spec("F8_E4M3", (rows, cols)), f"{name}_scale_inv": Spec("F32", blocks)}
