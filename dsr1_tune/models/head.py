"""A model's logits at chosen tokens, a piece at a time: those of a whole long sequence would be its largest tensor.

Letters: B rows of T tokens, N chosen places among them, C places in a piece, D model width, V words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

PIECE_NUMBERS = 2**26
"""Logits that a piece has at most: 256 MiB in float32."""


def places_in_a_piece(model: Any) -> int:
    """How many places have their logits in memory at once."""
    return max(1, PIECE_NUMBERS // int(model.config.get_text_config().vocab_size))


def num_pieces(model: Any, num_places: int) -> int:
    """In how many pieces so many places come."""
    return max(1, -(-num_places // places_in_a_piece(model)))


def logits_in_pieces(
    model: Any, places_N: Tensor, size: int = 0, at_least: int = 1, **inputs: Tensor
) -> Iterator[Tensor]:
    """The logits (C, V) at `places_N` of the rows laid end to end (B·T), in their order, `size` of them at a time.

    The model runs once up to its last states. Then its own forward goes on from each piece of them, so that whatever a
    family does behind them (a scale, a soft cap) is done. It is called `at_least` so often, also without a place.
    """
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model  # from under PEFT
    size = size or places_in_a_piece(model)
    trunk = _Trunk(bare.get_decoder(), places_N)
    for start in range(0, max(len(places_N), size * at_least, 1), size):
        with trunk.saying(slice(start, start + size)):
            logits_BCV = model(**inputs, use_cache=False).logits
        if start < len(places_N):
            yield logits_BCV[0] if trunk.is_asked else logits_BCV.flatten(0, 1)[places_N[start : start + size]]


class _Trunk:
    """A model without its head, which for a while hands the head a piece of its last states instead of all."""

    def __init__(self, module: Any, places_N: Tensor) -> None:
        self._module, self._places_N = module, places_N
        self._output: Any = None
        self._states_ND: Tensor | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the model asks it at all: one that has no part of that kind gives all of its logits."""
        return self._states_ND is not None

    @contextmanager
    def saying(self, piece: slice) -> Iterator[None]:
        """Inside, it computes once, and says these of the chosen places' states."""
        own, compute = vars(self._module).get("forward"), self._module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._states_ND is None:
                self._output = compute(*args, **kwargs)
                states_SD = self._output.last_hidden_state.flatten(0, 1)
                # A head that is called for nothing still wants one row.
                self._states_ND = states_SD[self._places_N.to(states_SD.device)] if len(self._places_N) else states_SD
            states_CD = self._states_ND[piece] if piece.start < len(self._states_ND) else self._states_ND[:1]
            return type(self._output)(**{**self._output, "last_hidden_state": states_CD.unsqueeze(0)})

        self._module.forward = forward
        try:
            yield
        finally:
            del self._module.forward
            if own is not None:
                self._module.forward = own
