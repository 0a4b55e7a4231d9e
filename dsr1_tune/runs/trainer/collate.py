"""Packed sequences as a batch in which no example sees another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset

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
        length = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), length)
        ids_BT = torch.full(shape, self._pad_token)
        labels_BT = torch.full(shape, IGNORED)
        positions_BT = torch.zeros(shape, dtype=torch.long)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels_BT[number, : len(row["labels"])] = torch.tensor(row["labels"])
            positions = torch.cat([torch.arange(count) for count in row["seq_lengths"]])
            positions_BT[number, : len(positions)] = positions
        return {"input_ids": ids_BT, "labels": labels_BT, "position_ids": positions_BT}


def is_token(position_ids_BT: torch.Tensor) -> torch.Tensor:
    """Which places (B, T) of a `PackedCollator` batch hold a token; the others are padding.

    Every example has at least two tokens, so its position 0 is followed by 1; padding's is followed by 0.
    """
    begins_BT = torch.zeros_like(position_ids_BT, dtype=torch.bool)
    begins_BT[:, :-1] = (position_ids_BT[:, :-1] == 0) & (position_ids_BT[:, 1:] == 1)
    return begins_BT | (position_ids_BT > 0)
