"""A longer context for a base: its rope stretched by YaRN (arXiv 2309.00071), where the rope allows it."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

from dsr1_tune.errors import ModelError

# What YaRN multiplies queries and keys by, for a context stretched s times: 0.1 ln s + 1 (section 3.4 of the paper).
_SLOPE = 0.1
_NO_ROPE = "its positions are no rotary embedding"
_REASONS = {
    "longrope": "its rotary frequencies are written out one by one (longrope)",
    "llama3": "its rope is stretched already, in Llama 3's own way",
    "linear": "its rope is stretched already, by linear interpolation",
    "dynamic": "its rope stretches by itself (dynamic)",
}


def with_context(config: Any, tokens: int, name: str = "the base") -> Any:
    """`config` for a context of `tokens`; 0 leaves it as it is. Short texts are read as before but for YaRN's factor.

    Raises ModelError where the rope cannot be stretched so, or the context is longer than that already.
    """
    if not tokens or tokens == config.max_position_embeddings:
        return config
    rope = _stretchable(config, tokens, name)
    original = int(rope.get("original_max_position_embeddings", config.max_position_embeddings))
    stretched = copy.deepcopy(config)
    stretched.rope_parameters = _yarn(rope, tokens / original, original, config)
    stretched.max_position_embeddings = tokens
    if getattr(config, "head_dim", 0) is None:
        # Mixtral's is left to be reckoned, and transformers forgets that for YaRN.
        stretched.head_dim = config.hidden_size // config.num_attention_heads
    return stretched


def _stretchable(config: Any, tokens: int, name: str) -> dict[str, Any]:
    """The rope's parameters, if it is a plain one or YaRN's. Raises ModelError."""
    rope = getattr(config, "rope_parameters", None)
    kind = rope.get("rope_type", "default") if rope else None
    if not rope:
        reason = _NO_ROPE
    elif any(isinstance(value, dict) for value in rope.values()):
        reason = "its layers have ropes of several kinds"
    elif kind not in ("default", "yarn"):
        reason = _REASONS.get(str(kind), f"its rope is of the kind {kind}")
    elif tokens < config.max_position_embeddings:
        raise ModelError(
            f"{name}: its context is {config.max_position_embeddings:,} tokens already, longer than {tokens:,}",
            hint="leave base.context out",
        )
    else:
        return dict(rope)
    raise ModelError(
        f"{name}: its context cannot be stretched with YaRN: {reason}",
        hint=f"leave base.context out and keep to {config.max_position_embeddings:,} tokens, or choose another base",
    )


def _yarn(rope: dict[str, Any], factor: float, original: int, config: Any) -> dict[str, Any]:
    """A rope's parameters, stretched `factor` times from the `original` context; what YaRN had of its own is kept."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    is_plain = rope.get("rope_type", "default") == "default"
    before = rope.get("attention_factor")
    if before is not None and math.isclose(before, _SLOPE * math.log(max(rope.get("factor") or 1, 1)) + 1):
        del rope["attention_factor"]  # it follows from the factor
    rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    rope.pop("type", None)
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    if is_plain and hasattr(module, "yarn_apply_mscale"):  # as DeepSeek's: scores are multiplied by YaRN's factor
        # Latent attention rotates a part of each query and key only: all of it is scaled at the softmax instead.
        rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return rope


def check_length(config: Any, num_tokens: int, name: str = "the base") -> None:
    """Refuse sequences of more tokens than the model has positions for. Raises ModelError."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and num_tokens > limit:
        raise ModelError(
            f"{name}: a text of {num_tokens:,} tokens is longer than its context of {limit:,}",
            hint=f"lower schedule.max_tokens to {limit:,}, or stretch it with --set base.context={num_tokens}",
        )
