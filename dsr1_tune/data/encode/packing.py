"""Examples put together into sequences of at most max_tokens, so that little of a batch is padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from dsr1_tune.data.encode.example import IGNORED, Example


@dataclass(frozen=True, slots=True)
class Packed:
    """Several examples one after another; `lengths` tell where each ends.

    The first label of every example is IGNORED: nothing of it stands before that token, only another example does.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    lengths: tuple[int, ...]


def pack(examples: Sequence[Example], max_tokens: int, seed: int) -> list[Packed]:
    """All examples, every one whole, in few sequences; the same ones for the same seed."""
    lengths = [len(example.input_ids) for example in examples]
    return [_joined([examples[number] for number in numbers]) for numbers in fill(lengths, max_tokens, seed)]


def _joined(examples: Sequence[Example]) -> Packed:
    ids = chain.from_iterable(example.input_ids for example in examples)
    labels = chain.from_iterable((IGNORED, *example.labels[1:]) for example in examples)
    return Packed(tuple(ids), tuple(labels), tuple(len(example.input_ids) for example in examples))


def fill(lengths: Sequence[int], max_tokens: int, seed: int) -> list[list[int]]:
    """Which examples, by number, share a sequence: the longest first, each where it leaves the least room (best fit).

    Equal lengths are drawn by `seed`, so that sequences mix what stands together in a file.
    """
    assert all(0 < length <= max_tokens for length in lengths), "encode drops or cuts what is too long"
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    order.sort(key=lengths.__getitem__, reverse=True)
    sequences: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(max_tokens + 1)]
    # Bit r is set where a sequence has room for r more tokens; to find the least room that does is one shift.
    rooms = 0
    for number in order:
        length = lengths[number]
        wide_enough = rooms >> length
        if wide_enough:
            room = length + (wide_enough & -wide_enough).bit_length() - 1
            sequence = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room = max_tokens
            sequence = len(sequences)
            sequences.append([])
        sequences[sequence].append(number)
        by_room[room - length].append(sequence)
        rooms |= 1 << (room - length)
    return sequences
