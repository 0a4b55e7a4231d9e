"""Which tensors there are, how much there is to write, and a bar that tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dsr1_tune.models.weights.checkpoint import Weights

if TYPE_CHECKING:
    from dsr1_tune.runs.console import Narrator


def names_of(weights: Weights) -> list[str]:
    """The names of all tensors, shard by shard."""
    return [name for names in weights.shards.values() for name in names]


def num_bytes(weights: Weights) -> int:
    """What the tensors take on disk."""
    return sum(weights.spec(name).num_bytes for name in names_of(weights))


def num_elements(weights: Weights) -> int:
    """How many numbers the tensors hold."""
    return sum(weights.spec(name).num_elements for name in names_of(weights))


@contextmanager
def counted(narrator: Narrator, weights: Weights, what: str = "MiB written") -> Iterator[Callable[[int], None]]:
    """A bar for going through weights, such as `write_weights` does, in MiB."""
    with narrator.counting(what, num_bytes(weights) >> 20) as move:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            move(((done + count) >> 20) - (done >> 20))
            done += count

        yield advance
