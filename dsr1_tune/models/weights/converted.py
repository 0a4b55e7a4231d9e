"""Weights of which some are stored as several tensors each: made when they are asked for, one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property

from torch import Tensor

from dsr1_tune.models.weights.checkpoint import DTYPES, Spec, Stored, Weights


class Converted:
    """`weights` with those named in `chosen` replaced by what `make` makes of them; see checkpoint.Weights.

    specs(name, spec) says what a weight becomes: names, number formats and shapes, in the order in which they are
    written; make(name, weight) the tensors themselves. read(name) gives the weight, where that is to be more exact
    than `weights` say.
    """

    def __init__(
        self,
        weights: Weights,
        chosen: Collection[str],
        specs: Callable[[str, Spec], dict[str, Spec]],
        make: Callable[[str, Tensor], Mapping[str, Tensor]],
        read: Callable[[str], Tensor] | None = None,
    ) -> None:
        self._weights, self._make, self._read = weights, make, read or weights.read
        self._made_of: dict[str, str] = {}
        self._specs: dict[str, Spec] = {}
        self._last: tuple[str, Mapping[str, Tensor]] = ("", {})
        for name in chosen:
            becomes = specs(name, weights.spec(name))
            self._specs |= becomes
            self._made_of |= dict.fromkeys(becomes, name)

    @cached_property
    def shards(self) -> dict[str, tuple[str, ...]]:
        """As those of the weights that it is made of."""
        becomes: dict[str, list[str]] = {}
        for part, name in self._made_of.items():
            becomes.setdefault(name, []).append(part)
        return {
            file: self._in_order([part for name in names for part in becomes.get(name, [name])])
            for file, names in self._weights.shards.items()
        }

    def spec(self, name: str) -> Spec:
        """Number format and shape; raises KeyError for an unknown name."""
        return self._specs[name] if name in self._specs else self._weights.spec(name)

    def stored(self, name: str) -> Stored | None:
        """Where the bytes of a tensor that stays as it is are stored."""
        return None if name in self._specs else self._weights.stored(name)

    def read(self, name: str) -> Tensor:
        """The tensor; the others that its weight becomes are kept until another weight's are asked for."""
        if name not in self._specs:
            return self._weights.read(name)
        weight = self._made_of[name]
        if self._last[0] != weight:
            self._last = ("", {})  # first give back what is no longer needed
            self._last = (weight, self._make(weight, self._read(weight)))
        return self._last[1][name]

    def _in_order(self, names: list[str]) -> tuple[str, ...]:
        """The same names so that every tensor starts at a multiple of its numbers' size, as safetensors reads them.

        Single numbers go last; where matrices are of odd sizes, the widest numbers go first, as safetensors itself
        writes them, at the price that weights are converted more than once.
        """
        names = sorted(names, key=lambda name: self.spec(name).num_bytes == 1)
        place = 0
        for name in names:
            spec = self.spec(name)
            if place % DTYPES[spec.dtype].itemsize:
                return tuple(sorted(names, key=lambda name: -DTYPES[self.spec(name).dtype].itemsize))
            place += spec.num_bytes
        return tuple(names)
