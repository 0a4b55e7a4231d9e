"""Expert parallelism: which of a layer's routed experts each of several processes holds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

_ATTRIBUTE = "_expert_shard"


@dataclass(frozen=True)
class ExpertParallel:
    """This process among the `size` that share the experts out: process `rank`, from 0."""

    rank: int
    size: int

    def bounds(self, num_experts: int) -> tuple[int, ...]:
        """Where each process's experts begin, and the end: as many for each, or one more. (size + 1,)"""
        return tuple(rank * num_experts // self.size for rank in range(self.size + 1))


def most_held(num_experts: int, processes: int) -> int:
    """The most of a layer's experts that any of the processes holds which share them out."""
    return -(-num_experts // processes)


@dataclass(frozen=True)
class ExpertShard:
    """A layer of `num_experts` experts of which this process holds those of `mine` alone, in fused weights."""

    num_experts: int
    parallel: ExpertParallel

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where each process's experts begin, and the end."""
        return self.parallel.bounds(self.num_experts)

    @property
    def mine(self) -> range:
        """The numbers that the experts held here have in the whole layer."""
        bounds = self.bounds
        return range(bounds[self.parallel.rank], bounds[self.parallel.rank + 1])

    def of_all(self, number: int) -> int:
        """How much all of the layer's experts have together, of whose like those held here have `number`."""
        return number // len(self.mine) * self.num_experts


def shard_of(experts: nn.Module) -> ExpertShard | None:
    """Which of its experts a module of fused experts holds; None where it holds all of them."""
    shard: ExpertShard | None = getattr(experts, _ATTRIBUTE, None)
    return shard


def mark_sharded(experts: nn.Module, shard: ExpertShard) -> None:
    """Note on a module of fused experts that its weights are those of `shard.mine` alone."""
    setattr(experts, _ATTRIBUTE, shard)
