"""TRL's fused head, which training takes its loss from without whole logits: made, and held, to give the model's own.

TRL multiplies last states with the output embeddings by itself, and knows the commoner names of what families do beside
that (`logit_scale`, `final_logit_softcapping` and others). What it does not know it would leave out without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.models.head import logits_in_pieces
from dsr1_tune.moe.monitor import uncounted

_NUM_TOKENS = 8
_TOLERANCE = 0.1
"""In nats a token, beside one part in twenty: what rounding to 16 bits explains, unless logits are large."""


@contextmanager
def as_trl_reads_it(config: Any) -> Iterator[None]:
    """Inside, Inkling's divisor of the last states stands in the config by a name that TRL looks for, too."""
    text = config.get_text_config()
    divisor = getattr(text, "logits_mup_width_multiplier", None)
    if divisor is None or hasattr(text, "logit_scale"):
        yield
        return
    text.logit_scale = 1 / divisor
    try:
        yield
    finally:
        del text.logit_scale


@torch.no_grad()
def check_fused_head(model: Any, temperature: float = 1.0) -> None:
    """Raise ModelError if the log-probabilities that TRL's fused head gives are not those of the model's logits."""
    was_training = model.training
    model.eval()
    ids_1T = torch.arange(_NUM_TOKENS, device=model.device).unsqueeze(0) + 1
    places_N = torch.arange(_NUM_TOKENS - 1)
    inputs = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
    with uncounted():
        logits_TV = torch.cat([piece.cpu() for piece in logits_in_pieces(model, places_N, **inputs)])
        fused_T = model(**inputs, labels=ids_1T, fused_lm_head=True).log_probs[0].float().cpu()
    model.train(was_training)
    own_T = (logits_TV.float() / temperature).log_softmax(-1).gather(1, ids_1T[0, 1:, None].cpu()).squeeze(1)
    last_digit = float(logits_TV.abs().max()) * torch.finfo(logits_TV.dtype).eps / temperature
    tolerance = max(_TOLERANCE, 4 * last_digit)
    if own_T.isfinite().all() and not torch.allclose(fused_T, own_T, rtol=0.05, atol=tolerance):
        raise ModelError(
            f"the loss that TRL computes of {model.config.model_type} is not that of its logits: they are apart by up "
            f"to {float((fused_T - own_T).abs().max()):.2g} nats a token",
            hint="its output layer does something that TRL does not know; a newer trl may",
        )
