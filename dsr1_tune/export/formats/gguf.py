"""GGUF, one file for llama.cpp and Ollama, in one of llama.cpp's types; see export/gguf for how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dsr1_tune.config.export import Quantize
from dsr1_tune.export.formats.format import Format

if TYPE_CHECKING:
    from dsr1_tune.export.weights.accounting import Quantized
    from dsr1_tune.export.weights.source import Source
    from dsr1_tune.runs.console import Narrator

_PLAIN = ("bf16", "f16")
_TYPES: tuple[str, ...] = get_args(Quantize.model_fields["gguf"].annotation)


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """See export.gguf.write."""
    from dsr1_tune.export.gguf import write as gguf

    return gguf.write(source, folder, settings, narrator)


def _gentler(settings: Quantize) -> tuple[str, ...]:
    """Every larger type, the next one first."""
    larger = [kind for kind in _TYPES[: _TYPES.index(settings.gguf)] if kind != "f16"]
    return tuple(f"--to gguf --set quantize.gguf={kind}" for kind in reversed(larger)) if settings.gguf != "f16" else ()


FORMAT = Format(
    name="gguf",
    bits=4.9,
    write=write,
    is_stored_as=lambda stored: stored.get("quant_method") == "gguf",
    loads_in=frozenset({"llama.cpp"}),
    refused_by={
        "vllm": "it has GGUF only in a plugin, under-optimised and experimental by its own words",
        "sglang": "its GGUF reading goes through transformers' and does not know DeepSeek; llama.cpp is the engine for "
        "it",
        "transformers": "it would multiply the file out to 16 bits, and does not know DeepSeek's",
    },
    next_step="It is for llama.cpp and Ollama; the Modelfile lies beside it.",
    options={"gguf": ""},
    variant=lambda settings: settings.gguf,
    gentler=_gentler,
    keeps=lambda settings: settings.gguf in _PLAIN,
    takes_every_model=True,
)
