"""Packed sequences as a batch in which no example sees another, and the check that none does in a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from itertools import accumulate, pairwise
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers.masking_utils import create_masks_for_generate, find_packed_sequence_indices

from dsr1_tune.data.encode.example import IGNORED
from dsr1_tune.data.encode.packing import Packed
from dsr1_tune.errors import ModelError
from dsr1_tune.models.attention import is_flash

# How far the logits of a packed example may be from its own alone, as a share of their size. In 16 bits products of
# other shapes round otherwise; an example that sees another one is off by several tenths.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_16_BIT = 5e-2
# Two examples that share a sequence, and two in a shorter one, which is padded.
_LENGTHS = ((23, 17), (11, 9))


def as_dataset(sequences: Sequence[Packed]) -> Dataset:
    """Packed sequences in the columns that TRL's trainer keeps."""
    columns = {"input_ids": "input_ids", "labels": "labels", "seq_lengths": "lengths"}
    return Dataset.from_dict({column: [getattr(one, name) for one in sequences] for column, name in columns.items()})


class PackedCollator:
    """Makes a batch (B, T) of packed sequences: input_ids, labels, and position_ids that restart with every example.

    There is no attention mask: without one, transformers takes from the positions where examples begin, and lets each
    see itself alone. Padding, at the end, has position 0 at every token, and so sees only itself. Flash attention is
    told where examples begin in a single row alone: with `is_one_row` the sequences are laid end to end, (1, B·T).
    """

    def __init__(self, pad_token: int, is_one_row: bool = False) -> None:
        self._pad_token, self._is_one_row = pad_token, is_one_row

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows of `as_dataset` → a batch."""
        positions = [torch.cat([torch.arange(count) for count in row["seq_lengths"]]) for row in rows]
        if self._is_one_row:
            ids, labels = (torch.cat([torch.tensor(row[one]) for row in rows]) for one in ("input_ids", "labels"))
            columns = {"input_ids": ids, "labels": labels, "position_ids": torch.cat(positions)}
            return {name: column.unsqueeze(0) for name, column in columns.items()}
        return {
            "input_ids": pad_sequence([torch.tensor(row["input_ids"]) for row in rows], True, self._pad_token),
            "labels": pad_sequence([torch.tensor(row["labels"]) for row in rows], True, IGNORED),
            "position_ids": pad_sequence(positions, True),
        }


def use_packing(model: nn.Module, pad_token: int = 0) -> None:
    """Make sure that packed examples do not see one another in `model`, or raise ModelError.

    Most architectures keep to the positions of a `PackedCollator` batch. A few (gpt-oss) build their attention masks
    without looking at them: those are given masks. What remains are models that carry a state from token to token
    (Mamba, linear attention): there packed examples would silently learn from one another.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # from under PEFT
    tolerance = _TOLERANCE.get(inner.get_input_embeddings().weight.dtype, _TOLERANCE_16_BIT)
    difference = largest_difference(model, pad_token)
    if difference <= tolerance:
        return
    handle = inner.base_model.register_forward_pre_hook(_give_masks, with_kwargs=True)
    if not largest_difference(model, pad_token) <= tolerance:
        handle.remove()
        raise ModelError(
            "this model cannot be trained with packing: an example would see those before it in its sequence"
            + (f" (its logits change by {difference:.0%})" if math.isfinite(difference) else ""),
            hint="leave sequences.packing out",
        )


@torch.no_grad()
def largest_difference(model: Any, pad_token: int = 0) -> float:
    """How far the logits of packed examples are from their own alone, relative to their size, at worst.

    Infinite where the model takes no positions at all.
    """
    sequences = _drawn(model.get_input_embeddings().weight.shape[0])
    if is_flash(model):  # of which a batch is one row
        sequences = [Packed(*(sum(parts, ()) for parts in zip(*map(astuple, sequences), strict=True)))]
    batch = PackedCollator(pad_token)(as_dataset(sequences))
    was_training = model.training
    model.eval()
    try:
        packed_BTV = _logits(model, input_ids=batch["input_ids"], position_ids=batch["position_ids"])
        return max(
            float((packed_BTV[row, where] - alone_TV).norm() / alone_TV.norm())
            for row, sequence in enumerate(sequences)
            for where in (slice(*ends) for ends in pairwise(accumulate(sequence.lengths, initial=0)))
            for alone_TV in _logits(model, input_ids=batch["input_ids"][row : row + 1, where])
        )
    except (TypeError, ValueError, KeyError):  # the model knows no position_ids, or looks for masks of other kinds
        return float("inf")
    finally:
        model.train(was_training)


def _drawn(vocab_size: int) -> list[Packed]:
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for lengths in _LENGTHS:
        ids = tuple(torch.randint(vocab_size, (sum(lengths),), generator=generator).tolist())
        sequences.append(Packed(ids, ids, lengths))
    return sequences


def _logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    on_device = {name: value.to(model.device) for name, value in inputs.items()}
    logits_BTV: torch.Tensor = model(**on_device, use_cache=False).logits.float()
    return logits_BTV


def _give_masks(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before the decoder runs: for packed positions the masks that transformers makes elsewhere."""
    positions_BT = kwargs.get("position_ids")
    if positions_BT is None or kwargs.get("attention_mask") is not None:
        return args, kwargs
    if find_packed_sequence_indices(positions_BT) is None:
        return args, kwargs
    dtype = decoder.get_input_embeddings().weight.dtype
    # Of the embeddings only batch, length, number format and device are looked at.
    embeddings_BT1 = torch.empty(*positions_BT.shape, 1, dtype=dtype, device=positions_BT.device)
    masks = create_masks_for_generate(decoder.config, embeddings_BT1, None, None, position_ids=positions_BT)
    return args, kwargs | {"attention_mask": masks}
