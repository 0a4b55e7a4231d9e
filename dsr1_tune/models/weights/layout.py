"""How a checkpoint's tensors map to the model's parameters: `experts.7.up_proj.weight` is a part of `gate_up_proj`.

transformers fuses the experts of a layer while it loads, and takes them apart again when it saves. Which stored tensor
is which part is found out by sending a small numbered tensor through its own conversion, so no names of any family
are written down here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import Anatomy, Part, find_experts

_ROWS, _COLS = 4, 2
_KNOWN_ROWS: dict[tuple[int, ...], tuple[int, int, int] | None] = {
    (0, 1, 2, 3): None,
    (0, 1): (0, 1, 2),
    (2, 3): (1, 1, 2),
    (0, 2): (0, 2, 2),
    (1, 3): (1, 2, 2),
}


@dataclass(frozen=True)
class Piece:
    """One stored tensor as a part of a parameter of the model."""

    stored: str
    """Its name on disk."""
    parameter: str
    """The parameter that it is, or is a part of."""
    expert: int | None = None
    """Which expert's; None where it is all of the parameter."""
    rows: tuple[int, int, int] | None = None
    """Which of an expert's rows, (first, step, how many parts the rows make): (1, 1, 2) the second half, (0, 2, 2)
    every other one; None for all."""
    is_transposed: bool = False
    """Whether it is stored with rows and columns swapped."""

    def of(self, parameter: Tensor) -> Tensor:
        """The view of the model's parameter (or an update of its shape) that is this tensor, as it is stored."""
        if self.expert is None:
            return parameter
        return self.of_expert(parameter[self.expert])

    def of_expert(self, matrix: Tensor) -> Tensor:
        """The same from the expert's own matrix."""
        matrix = self.rows_of(matrix)
        return matrix.T if self.is_transposed else matrix

    def rows_of(self, matrix: Tensor) -> Tensor:
        """Those rows of an expert's matrix, or of a LoRA B whose rows are the matrix's, that are stored here."""
        if self.rows is None:
            return matrix
        first, step, parts = self.rows
        size = matrix.shape[0] // parts
        return matrix[first::step] if step > 1 else matrix[first * size : (first + 1) * size]


@dataclass(frozen=True)
class Layout:
    """Where each stored tensor belongs in a model, and to which part of it."""

    pieces: Mapping[str, Piece]
    """By stored name; tensors that the model has no place for, such as further prediction layers, are not here."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the model's parameters and buffers."""
    _parts: Mapping[str, Part] = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, stored: Iterable[str]) -> Layout:
        """The layout of `model`, which may be one without weights, over the stored names.

        Raises ModelError for a parameter that is not stored, or whose conversion is of an unknown kind.
        """
        stored = set(stored)
        state = dict(model.state_dict())
        part_of = Anatomy(model)
        pieces = {name: Piece(name, name) for name in state if name in stored}
        if rest := [name for name in state if name not in pieces]:
            pieces |= {name: piece for name, piece in _converted(model, state, rest).items() if name in stored}
        tied: Any = getattr(model, "all_tied_weights_keys", None) or ()  # another's, and so perhaps not stored
        found = {piece.parameter for piece in pieces.values()}
        if absent := [name for name in state if name not in found and name not in tied]:
            raise ModelError(
                f"{len(absent)} of the model's weights are not stored under names that are known, such as {absent[0]}",
                hint="save the base with transformers' save_pretrained, and use that copy",
            )
        parts = {name: part_of(piece.parameter) for name, piece in pieces.items()}
        return cls(pieces, {name: tuple(tensor.shape) for name, tensor in state.items()}, parts)

    def part(self, stored: str) -> Part:
        """The part of the model that a stored tensor belongs to; "other" for one that the model has no place for."""
        return self._parts.get(stored, "other")

    def is_matrix(self, stored: str) -> bool:
        """Whether a stored tensor is the weight of a linear layer or of an expert, rather than a norm or a table."""
        piece = self.pieces.get(stored)
        if piece is None or self.part(stored) in ("embeddings", "norms", "router", "other"):
            return False
        num_dims = len(self.shapes[piece.parameter]) - (piece.expert is not None)
        return num_dims >= 2 and not piece.parameter.endswith("bias")

    def pieces_of(self, parameter: str) -> tuple[Piece, ...]:
        """The stored tensors that make up a parameter."""
        return tuple(self._by_parameter.get(parameter, ()))

    @cached_property
    def _by_parameter(self) -> dict[str, list[Piece]]:
        grouped: dict[str, list[Piece]] = {}
        for piece in self.pieces.values():
            grouped.setdefault(piece.parameter, []).append(piece)
        return grouped


def _converted(model: nn.Module, state: Mapping[str, Tensor], names: list[str]) -> dict[str, Piece]:
    """Send numbered tensors through transformers' conversion and see where the numbers arrive."""
    from transformers.core_model_loading import revert_weight_conversion

    blocks = {f"{block.name}.{parameter}" for block in find_experts(model) for parameter in block.parameters}
    per_expert, probes = _ROWS * _COLS, {}
    for number, name in enumerate(names):
        if name in blocks:
            size = state[name].shape[0] * per_expert
            probes[name] = torch.arange(size).view(-1, _ROWS, _COLS) + (number << 32)
        else:
            probes[name] = torch.full((1,) * max(state[name].dim(), 1), number << 32)
    pieces = {}
    with torch.no_grad():
        for stored, probe in revert_weight_conversion(model, probes).items():
            numbers = probe & 0xFFFFFFFF
            name = names[int(probe.flatten()[0]) >> 32]
            if name not in blocks or probe.dim() != 2:
                pieces[stored] = Piece(stored, name)
                continue
            expert = int(numbers.flatten()[0]) // per_expert
            inside = numbers - expert * per_expert
            is_transposed = int(inside[0, 1] - inside[0, 0]) != 1
            rows = tuple((inside.T if is_transposed else inside)[:, 0].div(_COLS, rounding_mode="floor").tolist())
            if rows not in _KNOWN_ROWS or numbers.min() < 0:
                raise ModelError(
                    f"{stored}: transformers makes it of {name} in a way that is not known here",
                    hint="please report it with the model's name",
                )
            pieces[stored] = Piece(stored, name, expert, _KNOWN_ROWS[rows], is_transposed)
    return pieces
