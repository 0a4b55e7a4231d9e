"""Packed examples, and a check that each has the logits that it has alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dsr1_tune.data.encode.example import IGNORED, Example
from dsr1_tune.data.encode.packing import Packed, pack
from dsr1_tune.data.record import Message, Place, Record
from dsr1_tune.runs.trainer.collate import PackedCollator, as_dataset

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss", "llama"]

# Longer than gpt_oss's window of 32, so that a window reaches no further than its example.
LENGTHS = (40, 9, 25, 33, 2, 14, 60, 5, 21)

MAX_TOKENS = 100

PAD = 1


def example(length: int, seed: int) -> Example:
    draw = random.Random(seed)
    ids = tuple(draw.randrange(2, 258) for _ in range(length))
    first = draw.randrange(length - 1)
    labels = (IGNORED,) * first + ids[first:]
    record = Record((Message("user", "Q"), Message("assistant", "A")), Place("data.jsonl", seed, seed))
    return Example(record, ids, labels)


EXAMPLES = [example(length, seed) for seed, length in enumerate(LENGTHS)]


def load(folder: Path, **changes: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **changes)


def batch_of(sequences: list[Packed]) -> dict[str, torch.Tensor]:
    return PackedCollator(PAD)(as_dataset(sequences))


def alone(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def check_logits(model: Any) -> None:
    """Every packed example's logits are its own alone."""
    sequences = pack(EXAMPLES, MAX_TOKENS, seed=3)
    assert max(len(one.lengths) for one in sequences) > 2
    assert len({len(one.input_ids) for one in sequences}) > 1  # some are padded
    batch = batch_of(sequences)
    packed_BTV = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    for row, sequence in enumerate(sequences):
        start = 0
        for length in sequence.lengths:
            ids = sequence.input_ids[start : start + length]
            expected = alone(model, ids)
            torch.testing.assert_close(packed_BTV[row, start : start + length], expected, rtol=1e-4, atol=2e-4)
            start += length
