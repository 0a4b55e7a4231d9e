"""W4A16 for vLLM and SGLang: weights in groups of 4-bit integers with a scale each, activations in 16 bits.

Every matrix is read, rounded and written by itself; what stays in 16 bits is copied. With `method=gptq` the integers
come from a calibrated library instead, see gptq.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsr1_tune.config.export import Quantize
from dsr1_tune.export.formats.format import Format
from dsr1_tune.export.weights.accounting import Quantized, chosen
from dsr1_tune.quant.w4a16 import is_w4a16

if TYPE_CHECKING:
    from dsr1_tune.export.weights.source import Source
    from dsr1_tune.runs.console import Narrator


def write(source: Source, folder: Path, settings: Quantize, narrator: Narrator) -> Quantized:
    """Write the model to `folder` in W4A16, each weight rounded to the nearest, or as GPTQ calibrates it.

    Experts that one tensor holds are taken apart: scales are of a matrix each, and so engines read them.

    Raises ModelError for matrices that no group size divides.
    """
    from dsr1_tune.export.formats import gptq, rounding

    if settings.method == "gptq":
        return gptq.write(source, folder, settings, narrator)
    source = source.taken_apart(narrator.say)
    group_size = rounding.pick_group_size(source, chosen(source.layout, settings.all), settings.group_size)
    narrator.stage(f"Rounding to W4A16 in groups of {group_size}")
    return rounding.write_rounded(source, folder, settings, group_size, narrator)


def _gentler(settings: Quantize) -> tuple[str, ...]:
    calibrated = ("--to w4a16 --set quantize.method=gptq",) if settings.method == "rtn" else ()
    return (*calibrated, "--to fp8", "--to int8")


FORMAT = Format(
    name="w4a16",
    bits=4.25,
    write=write,
    is_stored_as=is_w4a16,
    loads_in=frozenset({"vllm", "sglang", "transformers"}),
    next_step="Serve it with vLLM or SGLang: vllm serve {folder}",
    options={"method": "", "group_size": "", "calibration_rows": "method=gptq"},
    variant=lambda settings: "gptq" if settings.method == "gptq" else "",
    gentler=_gentler,
)
