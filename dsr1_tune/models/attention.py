"""What computes a base's attention: a choice that is checked before any weight is read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from dsr1_tune.errors import ModelError

# The package of each, whether transformers finds it, the GPUs that it is made for, and how it is had.
_FLASH: dict[str, tuple[str, Callable[[], bool], tuple[int, int], str]] = {
    "flash_attention_2": (
        "flash-attn 2.3.3 or newer",
        is_flash_attn_2_available,
        (8, 0),
        "pip install flash-attn --no-build-isolation",
    ),
    "flash_attention_3": (
        "flash-attn-3",
        is_flash_attn_3_available,
        (9, 0),
        "git clone https://github.com/Dao-AILab/flash-attention && cd flash-attention/hopper && pip install "
        "--no-build-isolation .",
    ),
}
_OTHERS = "leave base.attention=auto"


def with_attention(config: Any, attention: str, dtype: str, name: str = "the base") -> Any:
    """`config` for a model whose attention is computed so, in `dtype` (see config.Base); auto leaves it as it is.

    Raises ModelError where the package or a GPU for it is missing, or the architecture cannot do it.
    """
    if attention == "auto":
        return config
    if why := unsupported(config, attention, dtype, "cuda" if torch.cuda.is_available() else "cpu"):
        raise ModelError(f"{name}: {why}", hint=_OTHERS)
    if attention in _FLASH:
        _check_flash(attention)
    chosen = copy.deepcopy(config)
    chosen._attn_implementation = attention
    return chosen


def unsupported(config: Any, attention: str, dtype: str, device_type: str) -> str:
    """Why attention could not be computed so on any machine with such a device; "" where it could."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # A family that names kernels of its own, as gpt-oss does, would be given one from the Hub in place of others.
    its_own = kind._compatible_flash_implementations
    has_flash = kind._supports_flash_attn and (its_own is None or attention in its_own)
    if not {"auto": True, "sdpa": kind._supports_sdpa, "eager": True}.get(attention, has_flash):
        return f"{config.model_type} has no attention by {attention}"
    if attention in _FLASH and device_type == "cpu":
        return f"base.attention={attention} needs a GPU, and there is none"
    if attention in _FLASH and dtype == "float32":
        return f"base.attention={attention} computes in 16 bits, base.dtype is float32"
    return ""


def _check_flash(attention: str) -> None:
    """Raises ModelError where this machine's GPU or packages are not those that it needs."""
    package, is_there, capability, install = _FLASH[attention]
    if torch.cuda.get_device_capability() < capability:
        least = f"{capability[0]}.{capability[1]}"
        have = f"{torch.cuda.get_device_name()} is not one"
        raise ModelError(f"base.attention={attention} needs a GPU of capability {least} or more; {have}", hint=_OTHERS)
    if not is_there():
        raise ModelError(f"base.attention={attention} needs a package that is missing: {package}", hint=install)


def is_flash(model: Any) -> bool:
    """Whether attention is computed by a kernel that takes rows of any lengths, laid end to end, and no mask."""
    return str(getattr(model.config, "_attn_implementation", "")).startswith("flash")
