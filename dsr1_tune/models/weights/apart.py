"""Experts that are stored as one tensor, taken apart into a matrix each; and put together again when they are read.

Formats whose scales belong to single matrices, and the engines that read them, have no place for the one tensor that
some families store all experts of a layer as. What belongs where is found out in layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dsr1_tune.models.weights.checkpoint import Spec, Stored, Weights
from dsr1_tune.models.weights.converted import Converted, LazyTensor
from dsr1_tune.models.weights.layout import Fused, Layout, Piece


class Apart(Converted):
    """`weights` with a matrix for each expert in place of every tensor that holds those of a layer.

    A layer's tensor is kept until all of its matrices were read, if they are read one after the other.
    """

    def __init__(self, weights: Weights, layout: Layout) -> None:
        fused = {one.piece.stored: one for one in layout.together}
        shapes = layout.shapes

        def specs(name: str, spec: Spec) -> dict[str, Spec]:
            shape = shapes[fused[name].piece.parameter]
            return {one.stored: Spec(spec.dtype, _shape_of(one, shape)) for one in fused[name].matrices}

        def make(name: str, stored: Tensor) -> dict[str, Tensor]:
            piece, whole = fused[name].piece, stored
            if not piece.is_itself:
                whole = stored.new_empty(shapes[piece.parameter])
                piece.put(stored, whole)
            return {one.stored: one.of(whole) for one in fused[name].matrices}

        super().__init__(weights, fused, specs, make)
        exact: Callable[[str], Tensor] | None = getattr(weights, "exact", None)
        self._exactly = Converted(weights, fused, specs, make, exact) if exact else None

    def read(self, name: str) -> Tensor:
        """The tensor, in the caller's own memory."""
        return super().read(name).contiguous()

    def exact(self, name: str) -> Tensor:
        """The tensor before it is rounded to what its spec says, where the weights that it is made of have that."""
        return self._exactly.read(name).contiguous() if self._exactly else self.read(name)


class PutTogether:
    """`weights` with the experts that are stored one by one as transformers stores them; see checkpoint.Weights."""

    def __init__(self, weights: Weights, layout: Layout) -> None:
        self._weights, self._layout = weights, layout
        self._made = {one.piece.stored: one for one in layout.apart}
        self.shards = shards_together(weights.shards, layout)

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""
        if (one := self._made.get(name)) is None:
            return self._weights.spec(name)
        return Spec(self._weights.spec(one.matrices[0].stored).dtype, stored_shape(one, self._layout))

    def stored(self, name: str) -> Stored | None:
        """Where its bytes are, unless it is put together."""
        return None if name in self._made else self._weights.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor."""
        one = self._made.get(name)
        return self._weights.read(name) if one is None else assembled(one, self._layout, self._weights.read)


def shards_together(shards: Mapping[str, tuple[str, ...]], layout: Layout) -> dict[str, tuple[str, ...]]:
    """The names in each file, with a layer's experts where the first of their matrices is."""
    instead = {one.matrices[0].stored: one.piece.stored for one in layout.apart}
    gone = {matrix.stored for one in layout.apart for matrix in one.matrices[1:]}
    return {
        file: kept
        for file, names in shards.items()
        if (kept := tuple(instead.get(name, name) for name in names if name not in gone))
    }


def as_transformers_stores(weights: Weights, layout: Layout) -> Weights:
    """The weights, with experts that are stored one by one put together where transformers stores them so."""
    return PutTogether(weights, layout) if layout.apart else weights


def put_together(weights: Mapping[str, LazyTensor], layout: Layout) -> dict[str, LazyTensor]:
    """The same tensors with those of experts that are stored one by one as transformers stores them."""
    made = {one.piece.stored: _lazily(one, layout, weights) for one in layout.apart}
    gone = {matrix.stored for one in layout.apart for matrix in one.matrices}
    return {name: tensor for name, tensor in weights.items() if name not in gone} | made


def _lazily(one: Fused, layout: Layout, weights: Mapping[str, LazyTensor]) -> LazyTensor:
    dtype = weights[one.matrices[0].stored].get_dtype()
    return LazyTensor(
        Spec(dtype, stored_shape(one, layout)), lambda: assembled(one, layout, lambda name: weights[name][...])
    )


def assembled(one: Fused, layout: Layout, read: Callable[[str], Tensor]) -> Tensor:
    """The tensor that transformers stores, of the matrices that `read` gives."""
    first = read(one.matrices[0].stored)
    whole = first.new_empty(layout.shapes[one.piece.parameter])
    for matrix in one.matrices:
        matrix.put(read(matrix.stored), whole)
    return one.piece.of(whole).contiguous()


def stored_shape(one: Fused, layout: Layout) -> tuple[int, ...]:
    """Of the tensor that transformers stores."""
    return _shape_of(one.piece, layout.shapes[one.piece.parameter])


def _shape_of(piece: Piece, parameter: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(piece.of(torch.empty(parameter, device="meta")).shape)
