"""How much there is to write, in whole MiB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from dsr1_tune.export.weights.progress import counted, num_bytes
from dsr1_tune.models.weights.checkpoint import Checkpoint, Spec, Stored
from dsr1_tune.runs.console import Narrator


class Large:
    """Two tensors of 1.5 MiB."""

    shards = {"model.safetensors": ("a", "b")}

    def spec(self, name: str) -> Spec:
        return Spec("U8", (3 << 19,))

    def read(self, name: str) -> torch.Tensor:
        return torch.zeros(3 << 19, dtype=torch.uint8)

    def stored(self, name: str) -> Stored | None:
        return None


def test_num_bytes_is_what_the_tensors_take(tiny_base: Path) -> None:
    checkpoint = Checkpoint(tiny_base)
    assert num_bytes(Large()) == 3 << 20
    assert num_bytes(checkpoint) == sum(checkpoint.read(name).nbytes for name in checkpoint.names)


def test_counted_passes_on_whole_mib_and_loses_none() -> None:
    seen: list[int] = []

    class Heard(Narrator):
        @contextmanager
        def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
            assert (what, total) == ("MiB written", 3)
            yield seen.append

    with counted(Heard(Console(quiet=True)), Large()) as advance:
        for _ in range(6):
            advance(1 << 19)
    assert sum(seen) == 3 and set(seen) == {0, 1}
