"""Settings of `merge`, `quantize`, `compare`, their gates, and `export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from dsr1_tune.config.sections import ConfigSection, Count


class Merge(ConfigSection):
    """How an adapter is merged into its base."""

    base: str | None = None
    """The 16-bit copy, made with dsr1-tune dequantize, of a quantized base: what was trained over that is merged into
    the copy. Any other model is refused."""
    fp8: Literal["bfloat16", "keep"] = "bfloat16"
    """What a block-FP8 base becomes. Most of what is learned is less than half a step of float8: bfloat16 keeps it;
    keep writes block-FP8 again, in half the space, where it is kept on average only, by rounding up or down by chance.
    """
    rows: Count = 8
    """Held-out rows on which base with adapter and merged model are compared."""
    streamed: Literal["auto", "yes", "no"] = "auto"
    """Whether the comparison reads the models layer by layer from disk; auto does where memory is short."""


class Quantize(ConfigSection):
    """Into which format, and how."""

    to: str = "nf4"
    """nf4 and int8 for our loader, w4a16 and fp8 for vLLM and SGLang, gguf for llama.cpp and Ollama, or a format of
    another installed package; none leaves the 16-bit model as it is."""
    all: bool = False
    """Quantize attention, dense layers and shared experts too, not only the routed experts."""
    gguf: Literal["bf16", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m"] = "q4_k_m"
    """The type of a GGUF's large matrices."""
    method: Literal["rtn", "gptq"] = "rtn"
    """For w4a16: round to nearest while streaming, or GPTQ (arXiv 2210.17323) calibrated on the run's training rows."""
    group_size: Literal[0, 32, 64, 128] = 0
    """For w4a16: weights that share a scale; 0 takes the largest of 128, 64 and 32 that divides every matrix."""
    calibration_rows: Count = 128
    """For gptq: rows to calibrate on."""


class Compare(ConfigSection):
    """What two models are compared on."""

    data: tuple[Path, ...] = ()
    """Domain rows; without it the held-out rows of the run that the models came from."""
    general: tuple[Path, ...] = ()
    """Rows of a general set; without it a small one that is built in."""
    max_rows: Count = 200
    """Rows of each set, drawn at random."""
    answers: Annotated[int, Field(ge=0)] = 50
    """Rows of the domain set that both models answer greedily; 0 compares no answers."""
    answer_tokens: Count = 128
    """Longest answer, in tokens."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Draws the rows and the bootstrap samples."""


def _share(value: Any) -> Any:
    """`2%` is 0.02."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError("is no share; write for example 2% or 0.02") from None


def _part(value: Any) -> Any:
    """A share that cannot be above 1."""
    share = _share(value)
    if isinstance(share, (int, float)) and 1 < share <= 100:
        is_percent = isinstance(value, str) and value.strip().endswith("%")
        raise ValueError("is more than all" if is_percent else f"write {share:g}% or {share / 100:g}")
    return share


def _limit(value: Any) -> Any:
    """A share that may be above 1, if that is said in percent: a bare 2 is more likely meant as 2 %."""
    share = _share(value)
    try:
        number = float(value)
    except (TypeError, ValueError):  # said in percent, or no number at all
        return share
    if number >= 1:
        raise ValueError(f"{value} is {number:.0%}; write {value}% or {number / 100:g}, or {number:.0%} if you mean it")
    return share


Limit = Annotated[float, BeforeValidator(_limit), Field(ge=0)]


class Gates(ConfigSection):
    """What the second model must keep, as a share or in percent; without a value nothing is asked."""

    max_loss_increase: Limit | None = None
    """Domain loss may rise by this share: 0.02 or 2%."""
    min_agreement: Annotated[float, BeforeValidator(_part), Field(ge=0, le=1)] | None = None
    """Share of tokens whose likeliest next token must stay the same: 0.95 or 95%."""
    max_general_drop: Limit | None = None
    """General loss may rise by this share: 0.01 or 1%."""


class CompareRun(ConfigSection):
    """What `dsr1-tune compare` needs to know besides the two models."""

    compare: Compare = Compare()
    gates: Gates = Gates()


class ExportRun(ConfigSection):
    """Everything `dsr1-tune export` needs to know."""

    renamed: ClassVar[Mapping[str, str]] = {"quantise": "quantize"}

    run: Path | None = None
    """The run folder."""
    out: Path | None = None
    """Where versions are kept; `current` links to the good one. Without it exports/<run>."""
    merge: Merge = Merge()
    quantize: Quantize = Quantize()
    compare: Compare = Compare()
    gates: Gates = Gates()
