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
    if attention in _FLASH:
        _check_flash(attention, dtype)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # A family that names kernels of its own, as gpt-oss does, would be given one from the Hub in place of others.
    its_own = kind._compatible_flash_implementations
    has_flash = kind._supports_flash_attn and (its_own is None or attention in its_own)
    if not {"sdpa": kind._supports_sdpa, "eager": True}.get(attention, has_flash):
        raise ModelError(f"{name}: {config.model_type} has no attention by {attention}", hint=_OTHERS)
    chosen = copy.deepcopy(config)
    chosen._attn_implementation = attention
    return chosen


def _check_flash(attention: str, dtype: str) -> None:
    package, is_there, capability, install = _FLASH[attention]
    if not torch.cuda.is_available():
        raise ModelError(f"base.attention={attention} needs a GPU, and there is none", hint=_OTHERS)
    if torch.cuda.get_device_capability() < capability:
        least = f"{capability[0]}.{capability[1]}"
        have = f"{torch.cuda.get_device_name()} is not one"
        raise ModelError(f"base.attention={attention} needs a GPU of capability {least} or more; {have}", hint=_OTHERS)
    if not is_there():
        raise ModelError(f"base.attention={attention} needs a package that is missing: {package}", hint=install)
    if dtype == "float32":
        raise ModelError(f"base.attention={attention} computes in 16 bits, base.dtype is float32", hint=_OTHERS)


def is_flash(model: Any) -> bool:
    """Whether attention is computed by a kernel that takes rows of any lengths, laid end to end, and no mask."""
    return str(getattr(model.config, "_attn_implementation", "")).startswith("flash")
