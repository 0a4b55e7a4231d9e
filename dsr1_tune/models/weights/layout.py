"""How a checkpoint's tensors map to the model's parameters: `experts.7.up_proj.weight` is a part of `gate_up_proj`.

transformers fuses the experts of a layer while it loads, and takes them apart again when it saves. Which stored tensor
is which part is found out by sending a small numbered tensor through its own conversion, so no names of any family
are written down here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import Anatomy, ExpertBlock, Part, find_experts

_ROWS, _COLS = 6, 2  # that two parts, or three, divide, and in which no part looks like another
_NUMBER = 32  # bits
_NUMBERED = re.compile(r".*?\.\d+\.")  # up to the number of a layer


@dataclass(frozen=True)
class Piece:
    """One stored tensor as a part of a parameter of the model."""

    stored: str
    """Its name on disk."""
    parameter: str
    """The parameter that it is, or is a part of."""
    expert: int | None = None
    """Which expert's; None where it is all experts', or of a parameter without any."""
    rows: tuple[int, int, int] | None = None
    """Which of an expert's rows, (first, step, how many parts the rows make): (1, 1, 2) the second half, (0, 2, 2)
    every other one; None for all."""
    is_transposed: bool = False
    """Whether it is stored with rows and columns swapped."""
    is_alternating: bool = False
    """Whether the rows of the two halves of each expert, which the model holds one below the other, alternate in it."""
    span: tuple[int, int] | None = None
    """The first row, and the one behind the last, of a parameter without experts; None for all."""
    is_of_columns: bool = False
    """Whether the model holds the expert's matrix as (in, out), whose columns are then what is called rows here."""

    @property
    def is_itself(self) -> bool:
        """Whether it is stored as the model holds it, whole."""
        return self == Piece(self.stored, self.parameter)

    def of(self, parameter: Tensor) -> Tensor:
        """What of the model's parameter (or of an update of its shape) is stored as this tensor; a view if it can."""
        if self.expert is not None:
            return self.of_expert(parameter[self.expert])
        if self.span is not None or parameter.dim() < 3:
            rows = self.rows_of(parameter)
            return rows.T if self.is_transposed else rows
        if self.rows is None and not self.is_alternating:
            return parameter.transpose(1, 2) if self.is_transposed else parameter
        rows = self.rows_of(parameter.transpose(0, 1)).transpose(0, 1)
        return rows.transpose(1, 2) if self.is_transposed else rows

    def put(self, stored: Tensor, parameter: Tensor) -> None:
        """The other way round: write what is stored to its place in the model's parameter."""
        if not self.is_alternating:
            self.of(parameter).copy_(stored)
            return
        rows = stored.dim() - (1 if self.is_transposed else 2)
        in_order = stored.transpose(0, rows).unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1).transpose(0, rows)
        replace(self, is_alternating=False).of(parameter).copy_(in_order)

    def of_expert(self, matrix: Tensor) -> Tensor:
        """The same from the expert's own matrix."""
        matrix = self.rows_of(matrix.T if self.is_of_columns else matrix)
        return matrix.T if self.is_transposed else matrix

    def rows_of(self, matrix: Tensor) -> Tensor:
        """Those rows of an expert's matrix, or of a LoRA B whose rows are the matrix's, that are stored here."""
        if self.is_alternating:
            return matrix.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
        if self.span is not None:
            return matrix[slice(*self.span)]
        if self.rows is None:
            return matrix
        first, step, parts = self.rows
        size = matrix.shape[0] // parts
        return matrix[first::step] if step > 1 else matrix[first * size : (first + 1) * size]


@dataclass(frozen=True)
class Fused:
    """A parameter that transformers stores as one tensor for all experts of a layer: its matrices, or their biases."""

    piece: Piece
    """As which tensor it is stored, or would be if it was not taken apart."""
    matrices: tuple[Piece, ...]
    """What it is taken apart into: the weights (or biases) of linear layers, gate, up and down of each expert."""

    def is_apart_in(self, stored: Collection[str]) -> bool:
        """Whether those names hold it taken apart. Raises ModelError if only some of its matrices are there."""
        if self.piece.stored in stored:
            return False
        missing = [matrix.stored for matrix in self.matrices if matrix.stored not in stored]
        if missing and len(missing) < len(self.matrices):
            raise ModelError(
                f"{len(missing)} matrices of experts are missing, such as {missing[0]}", hint="copy the model again"
            )
        return not missing


@dataclass(frozen=True)
class Layout:
    """Where each stored tensor belongs in a model, and to which part of it."""

    pieces: Mapping[str, Piece]
    """By stored name; tensors that the model has no place for, such as further prediction layers, are not here."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the model's parameters and buffers."""
    _parts: Mapping[str, Part] = field(repr=False)
    _linears: frozenset[str] = field(repr=False)
    """The weights of linear layers."""
    _fused: tuple[Fused, ...] = field(default=(), repr=False)
    """The parameters that transformers stores as one tensor for all experts of a layer."""

    @classmethod
    def of(cls, model: nn.Module, stored: Iterable[str]) -> Layout:
        """The layout of `model`, which may be one without weights, over the stored names.

        Raises ModelError for a parameter that is not stored, or whose conversion is of an unknown kind.
        """
        stored = set(stored)
        state = dict(model.state_dict())
        part_of = Anatomy(model)
        converted = _converted_names(model, state)
        # What is stored under the model's own name is the parameter itself, unless a conversion gives it that name.
        pieces = {name: Piece(name, name) for name in state if name in stored}
        usual: Iterable[Piece] = pieces.values()
        if converted or len(pieces) < len(state):
            found = _converted(model, state, converted)
            usual = found.values()
            taken = {piece.parameter for name, piece in found.items() if name in stored}
            pieces = {name: piece for name, piece in pieces.items() if name not in taken}
            pieces |= {name: piece for name, piece in found.items() if name in stored}
            if len({piece.parameter for piece in pieces.values()}) < len(state):
                pieces |= _inside(model, usual, stored)
        fused = tuple(_fused_in(model, usual, stored))
        pieces |= {matrix.stored: matrix for one in fused if one.is_apart_in(stored) for matrix in one.matrices}
        tied: Any = getattr(model, "all_tied_weights_keys", None) or ()  # another's, and so perhaps not stored
        whole = {piece.parameter for piece in pieces.values()}
        if absent := [name for name in state if name not in whole and name not in tied]:
            raise ModelError(
                f"{len(absent)} of the model's weights are not stored under names that are known, such as {absent[0]}",
                hint="save the base with transformers' save_pretrained, and use that copy",
            )
        parts = {name: part_of(piece.parameter) for name, piece in pieces.items()}
        linears = frozenset(f"{name}.weight" for name, one in model.named_modules() if isinstance(one, nn.Linear))
        return cls(pieces, {name: tuple(tensor.shape) for name, tensor in state.items()}, parts, linears, fused)

    @property
    def together(self) -> tuple[Fused, ...]:
        """The experts' parameters that are stored as one tensor each."""
        return tuple(one for one in self._fused if one.piece.stored in self.pieces)

    @property
    def apart(self) -> tuple[Fused, ...]:
        """Those whose matrices are stored one by one, though transformers stores them as one tensor."""
        return tuple(one for one in self._fused if one.piece.stored not in self.pieces)

    def taken_apart(self) -> Layout:
        """The same checkpoint's once the matrices of all experts are stored one by one."""
        return self._with({one.piece.stored: one.matrices for one in self.together})

    def put_together(self) -> Layout:
        """The other way round: experts as transformers stores them."""
        return self._with({matrix.stored: (one.piece,) for one in self.apart for matrix in one.matrices})

    def of_experts(self, held: Mapping[str, range]) -> Layout:
        """The same of a model that holds these of its experts alone, by the parameter, and counts them from 0."""

        def kept(pieces: Iterable[Piece]) -> Iterator[Piece]:
            for piece in pieces:
                mine = held.get(piece.parameter)
                if mine is None or piece.expert is None:
                    yield piece
                elif piece.expert in mine:
                    yield replace(piece, expert=piece.expert - mine.start)

        pieces = {piece.stored: piece for piece in kept(self.pieces.values())}
        shapes = {name: (len(held[name]), *shape[1:]) if name in held else shape for name, shape in self.shapes.items()}
        fused = tuple(replace(one, matrices=tuple(kept(one.matrices))) for one in self._fused)
        parts = {name: part for name, part in self._parts.items() if name in pieces}
        return replace(self, pieces=pieces, shapes=shapes, _parts=parts, _fused=fused)

    def _with(self, instead: Mapping[str, tuple[Piece, ...]]) -> Layout:
        """With other tensors in the places of those named."""
        found = [(self.part(name), one) for name, piece in self.pieces.items() for one in instead.get(name, (piece,))]
        parts = {piece.stored: part for part, piece in found}
        return replace(self, pieces={piece.stored: piece for _, piece in found}, _parts=parts)

    def part(self, stored: str) -> Part:
        """The part of the model that a stored tensor belongs to; "other" for one that the model has no place for."""
        return self._parts.get(stored, "other")

    def is_matrix(self, stored: str) -> bool:
        """Whether a stored tensor is the weight of a linear layer or of an expert, rather than a norm or a table."""
        piece = self.pieces.get(stored)
        if piece is None or self.part(stored) in ("embeddings", "norms", "router", "other"):
            return False
        if self.part(stored) == "routed_experts":
            num_dims = len(self.shapes[piece.parameter]) - (piece.expert is not None)
            return num_dims >= 2 and not piece.parameter.endswith("bias")
        return piece.parameter in self._linears

    def pieces_of(self, parameter: str) -> tuple[Piece, ...]:
        """The stored tensors that make up a parameter."""
        return tuple(self._by_parameter.get(parameter, ()))

    @cached_property
    def _by_parameter(self) -> dict[str, list[Piece]]:
        grouped: dict[str, list[Piece]] = {}
        for piece in self.pieces.values():
            grouped.setdefault(piece.parameter, []).append(piece)
        return grouped


def _inside(model: Any, pieces: Iterable[Piece], stored: Collection[str]) -> dict[str, Piece]:
    """The pieces that are stored under the names that they have in a larger model, with a tower for pictures say."""
    return {
        name: replace(piece, stored=name)
        for piece in pieces
        for name in _names_inside(model, piece.stored)
        if name in stored
    }


def stores_fused(model: Any) -> bool:
    """Whether transformers stores all experts of a layer of `model` as one tensor: sooner said than a whole layout."""
    for block in find_experts(model):
        name = f"{block.name}.down_proj"
        found = _converted(model, {name: block.module.down_proj}, {name})
        return [piece.expert for piece in found.values()] == [None]
    return False


def check_conversions(model: Any) -> None:
    """Raise ModelError, naming the family, where weights are stored in a way that nothing can be merged into.

    All but the experts of further layers are looked at, so that it takes no time to speak of before a run.
    """
    state = dict(model.state_dict())
    alike = {f"{block.name}.{name}" for block in find_experts(model)[1:] for name in block.parameters}
    converted = _converted_names(model, state.keys() - alike)
    _converted(model, {name: state[name] for name in state if name in converted}, converted)


def _names_inside(model: Any, stored: str) -> tuple[str, str]:
    return f"model.language_model.{stored.removeprefix('model.')}", f"{type(model).base_model_prefix}.{stored}"


def _fused_in(model: Any, usual: Iterable[Piece], stored: Collection[str]) -> Iterator[Fused]:
    """The experts' parameters that transformers stores as one tensor each, under names that go with those stored."""
    by_parameter = {piece.parameter: piece for piece in usual if piece.expert is None}
    for block in find_experts(model):
        for leaf in (leaf for name in block.parameters for leaf in (name, f"{name}_bias")):
            if (whole := by_parameter.get(f"{block.name}.{leaf}")) is None or not hasattr(block.module, leaf):
                continue
            names = (whole.stored, *_names_inside(model, whole.stored))
            around = [replace(whole, stored=name) for name in names] + [Piece(whole.parameter, whole.parameter)]
            found = [Fused(piece, _matrices(block, leaf, piece.stored)) for piece in around]
            yield from [one for one in found if one.piece.stored in stored or one.matrices[0].stored in stored][:1]


def _matrices(block: ExpertBlock, leaf: str, beside: str) -> tuple[Piece, ...]:
    """What a parameter is taken apart into, in the layer that `beside` is stored in.

    The names are those that the layers have where each expert is a module of linear layers: so write compressed-tensors
    and LLM Compressor, and so engines look for them.
    """
    name = leaf.removesuffix("_bias")
    is_bias = leaf != name
    parts: list[tuple[str, tuple[int, int, int] | None]] = [(name, None)]
    if name == "gate_up_proj":
        gate, up = ((0, 1, 2), (1, 1, 2)) if block.module.is_concatenated else ((0, 2, 2), (1, 2, 2))
        parts = [("gate_proj", gate), ("up_proj", up)]
    layers, number = _NUMBERED.match(block.name), _NUMBERED.match(beside)
    place = block.name if not layers or not number else number[0] + block.name.removeprefix(layers[0])
    return tuple(
        Piece(
            f"{place}.{expert}.{part}.{'bias' if is_bias else 'weight'}",
            f"{block.name}.{leaf}",
            expert,
            rows,
            is_of_columns=block.is_transposed and not is_bias,
        )
        for expert in range(block.num_experts)
        for part, rows in parts
    )


def _converted_names(model: nn.Module, names: Iterable[str]) -> set[str]:
    """The parameters that transformers computes from what is stored, rather than only giving them another name."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, apply_converters

    known: Any = getattr(model, "_weight_conversions", None)
    conversions: Any = get_model_conversion_mapping(model, add_legacy=False) if known is None else known
    back = [one.reverse_transform() for one in conversions if isinstance(one, WeightConverter)]
    return {name for name in names if apply_converters(name, back)[1] is not None}


def _converted(model: nn.Module, state: Mapping[str, Tensor], converted: set[str]) -> dict[str, Piece]:
    """Send numbered tensors through transformers' conversion and see where the numbers arrive."""
    from transformers.core_model_loading import revert_weight_conversion

    names = list(state)
    probes = {
        name: _numbered(state[name].shape if name in converted else [1] * max(state[name].dim(), 1), number)
        for number, name in enumerate(names)
    }
    with torch.no_grad():
        arrived = revert_weight_conversion(model, dict(probes))
    pieces = {}
    for stored, probe in arrived.items():
        name = names[int(probe.flatten()[0]) >> _NUMBER]
        piece = _recognised(stored, name, probe, probes[name]) if name in converted else Piece(stored, name)
        if piece is None:
            family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
            raise ModelError(
                f"{family}: {stored} is made of {name} in a way not known here, so nothing can be merged into it",
                hint="what is trained over it can be used beside it; please report it with the model's name",
            )
        pieces[stored] = piece
    return pieces


def _numbered(shape: Sequence[int], number: int) -> Tensor:
    """A tensor whose numbers say which parameter and which place in it they are of.

    As many rows, or experts, as the parameter has; of the rest few. All numbers of one parameter differ.
    """
    few = (_ROWS, _COLS) if len(shape) == 3 else (_COLS,) * (len(shape) - 1)
    sizes = [*shape[:1], *(min(size, most) for size, most in zip(shape[1:], few, strict=True))]
    return torch.arange(math.prod(sizes)).view(sizes) + (number << _NUMBER)


def _recognised(stored: str, name: str, probe: Tensor, whole: Tensor) -> Piece | None:
    """Which part of the numbered parameter `whole` has arrived as `probe`; None for an unknown one."""
    first = int(probe.flatten()[0]) - int(whole.flatten()[0])
    own = whole[0].numel()
    if whole.dim() == 3 and probe.dim() == 2:
        candidates = [replace(piece, stored=stored, parameter=name, expert=first // own) for piece in _PARTS]
    elif whole.dim() == 3 and probe.shape[0] == whole.shape[0]:
        candidates = [replace(piece, stored=stored, parameter=name) for piece in _PARTS]
    else:
        begin = first // own
        span = (begin, begin + len(probe)) if len(probe) < len(whole) else None
        candidates = [Piece(stored, name, span=span), Piece(stored, name, is_transposed=True)]
    for piece in candidates:
        if (part := piece.of(whole)).shape == probe.shape and torch.equal(part, probe):
            return piece
    return None


_PARTS = [
    Piece("", "", rows=rows, is_transposed=is_transposed, is_alternating=is_alternating)
    for is_transposed in (False, True)
    for rows, is_alternating in (
        *((rows, False) for rows in (None, (0, 1, 2), (1, 1, 2), (0, 2, 2), (1, 2, 2))),
        (None, True),
    )
]
