"""TRL's trainer, made to take the same steps in the same order whether or not it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer


class ResumableTrainer(SFTTrainer):
    """TRL's trainer with batches of like length, in an order that depends on seed and epoch alone."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGrouped(lengths, batch, self.args.seed)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Going on from its very last step, in the middle of an epoch, the trainer would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)


class LengthGrouped(Sampler[int]):
    """Random order in which records of like length share a batch; the same for the same seed and epoch.

    transformers' own sampler draws from the global generator, so that a resumed run would see another order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        yield from get_length_grouped_indices(self._lengths, self._batch_size, generator=generator)
