"""How much there is to write, and a bar that tells how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dsr1_tune.models.weights.checkpoint import Weights

if TYPE_CHECKING:
    from dsr1_tune.runs.console import Narrator


def num_bytes(weights: Weights) -> int:
    """What the tensors take on disk."""
    return sum(weights.spec(name).num_bytes for names in weights.shards.values() for name in names)


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
