"""Packed sequences as a batch in which no example sees another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.data.encode.packing import Packed


def as_dataset(sequences: Sequence[Packed]) -> Dataset:
    """Packed sequences in the columns that TRL's trainer keeps."""
    return Dataset.from_dict(
        {
            "input_ids": [one.input_ids for one in sequences],
            "labels": [one.labels for one in sequences],
            "seq_lengths": [one.lengths for one in sequences],
        }
    )


class PackedCollator:
    """Makes a batch (B, T) of packed sequences: input_ids, labels, and position_ids that restart with every example.

    There is no attention mask: without one, transformers takes from the positions where examples begin, and lets each
    see itself alone. Padding, at the end, has position 0 at every token, and so sees only itself.
    """

    def __init__(self, pad_token: int) -> None:
        self._pad_token = pad_token

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of `as_dataset` → a batch."""
        positions = [torch.cat([torch.arange(count) for count in row["seq_lengths"]]) for row in rows]
        return {
            "input_ids": pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True, self._pad_token),
            "labels": pad_sequence([torch.tensor(row["labels"]) for row in rows], True, IGNORED),
            "position_ids": pad_sequence(positions, True),
        }
