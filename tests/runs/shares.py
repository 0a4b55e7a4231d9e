"""One of two processes that test_evaluate.py starts: evaluates and answers its share, and says what came of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from dsr1_tune.align.online.generate import shared_answers
from dsr1_tune.align.preference.log_probs import log_probs
from dsr1_tune.config import Base, Rollout
from dsr1_tune.data.encode.example import IGNORED, Example
from dsr1_tune.data.record import Message, Place, Record
from dsr1_tune.models import head
from dsr1_tune.models.load import load
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.runs import evaluate
from dsr1_tune.runs.distributed import group

# Seven batches of one row, which two processes take four rounds for.
LENGTHS = (5, 40, 9, 23, 31, 12, 17)


def found(base: str) -> dict[str, Any]:
    """All that evaluations give, and how often this process called the model's layers and its head for each."""
    loaded = load(Base(model=base))
    model, tokenizer = loaded.model, loaded.tokenizer
    evaluate.MAX_BATCH_TOKENS, head.PIECE_NUMBERS = 1, 8 * 258
    draw = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(2, 258, (length,), generator=draw).tolist()) for length in LENGTHS]
    talk = [Record((Message("user", "x" * n), Message("assistant", "y")), Place("a.json", n, n)) for n in LENGTHS]
    examples = [Example(one, row, (IGNORED, *row[1:])) for one, row in zip(talk, ids, strict=True)]
    calls = {"layers": 0, "head": 0}

    def counts(what: str) -> Callable[..., None]:
        return lambda *_: calls.update({what: calls[what] + 1})

    model.model.layers[0].register_forward_hook(counts("layers"))
    model.lm_head.register_forward_hook(counts("head"))
    monitor, told = RoutingMonitor(model), dict[str, Any]()
    told["loss"] = evaluate.held_out_loss(model, examples, tokenizer.pad_token_id).as_json()
    told["routed"] = monitor.take(of_all_processes=True).load_LE.tolist()
    told["calls"] = dict(calls)
    told["log_probs"] = log_probs(model, [(row[:3], row[3:]) for row in ids], tokenizer.pad_token_id)
    calls.update(layers=0, head=0)
    answers = evaluate.sample_answers(model, tokenizer, talk, 6, is_in_step=True)
    told["steps"] = dict(calls)
    told["answers"] = [one.answer for one in answers]
    told["apart"] = [one.answer for one in evaluate.sample_answers(model, tokenizer, talk, 6)]
    rollout = Rollout(max_new_tokens=5, batch_size=2)
    told["rollout"] = [list(one) for one in shared_answers(model, ids, tokenizer, rollout).ids]
    told["alone"] = group.from_main(lambda: evaluate.held_out_loss(model, examples, tokenizer.pad_token_id).loss)
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    Path(sys.argv[2]).with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(found(sys.argv[1])))
    distributed.destroy_process_group()
