"""The held-out loss against a plain computation, and greedy answers against a plain loop."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.data.encode.example import IGNORED, Example, encode
from dsr1_tune.data.record import Message, Place, Record
from dsr1_tune.models.load import Loaded, load
from dsr1_tune.runs import evaluate
from dsr1_tune.runs.distributed import group
from dsr1_tune.runs.evaluate import HeldOut, held_out_loss, sample_answers
from tests.runs import shares

TALKS = [
    ("hi", "yes"),
    ("what is a fever?", "a body that is warmer than it should be, most often because it fights something"),
    ("why?", "no"),
    ("a question that is longer than its answer, by far", "true"),
]


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> Loaded:
    return load(Base(model=str(tiny_base)))


def record(*texts: str) -> Record:
    roles = ("user", "assistant") * len(texts)
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return Record(messages, Place("a.json", 1, 0))


@pytest.fixture(scope="module")
def examples(loaded: Loaded) -> list[Example]:
    encoded = [encode(record(*talk), loaded.tokenizer, 512) for talk in TALKS]
    assert all(isinstance(example, Example) for example in encoded)
    return encoded  # type: ignore[return-value]


@torch.no_grad()
def plain_losses(model: Any, example: Example) -> list[float]:
    """The loss of every learned token, each from a pass of its own over what stands before it."""
    losses = []
    for place, label in enumerate(example.labels):
        if label != IGNORED:
            logits = model(input_ids=torch.tensor([example.input_ids[:place]])).logits[0, -1]
            losses.append(-float(logits.log_softmax(-1)[label]))
    return losses


def test_held_out_loss_is_the_mean_over_tokens(loaded: Loaded, examples: list[Example]) -> None:
    each = [plain_losses(loaded.model, example) for example in examples]
    losses = [loss for record_losses in each for loss in record_losses]
    got = held_out_loss(loaded.model, examples, loaded.tokenizer.pad_token_id)
    assert got.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert (got.num_tokens, got.num_records) == (len(losses), len(examples))
    # A long answer weighs more than a short one.
    mean_of_means = sum(sum(one) / len(one) for one in each) / len(each)
    assert abs(got.loss - mean_of_means) > 0.01


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_held_out_loss_does_not_depend_on_batches(
    loaded: Loaded, examples: list[Example], monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    want = held_out_loss(loaded.model, examples, loaded.tokenizer.pad_token_id)
    monkeypatch.setattr(evaluate, "MAX_BATCH_TOKENS", max_tokens)
    counted: list[int] = []
    got = held_out_loss(loaded.model, examples, loaded.tokenizer.pad_token_id, counted.append)
    assert got.loss == pytest.approx(want.loss, abs=1e-5)
    assert sum(counted) == len(examples)
    assert len(counted) == {1: 4, 10_000: 1}.get(max_tokens, len(counted))


@pytest.mark.parametrize("is_training", [True, False])
def test_evaluation_leaves_the_model_as_it_was(loaded: Loaded, examples: list[Example], is_training: bool) -> None:
    loaded.model.train(is_training)
    loaded.model.config.use_cache = not is_training
    held_out_loss(loaded.model, examples, loaded.tokenizer.pad_token_id)
    sample_answers(loaded.model, loaded.tokenizer, [record("hi", "yes")], 2)
    assert loaded.model.training is is_training
    assert loaded.model.config.use_cache is not is_training
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    loaded.model.eval()


def test_held_out_result_survives_json() -> None:
    held_out = HeldOut(1.5, 10, 2)
    assert held_out.as_json()["perplexity"] == pytest.approx(math.exp(1.5))
    assert HeldOut.from_json(held_out.as_json()) == held_out
    assert HeldOut(1000.0, 1, 1).perplexity == math.inf


@torch.no_grad()
def test_sample_answers_are_greedy(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    # A model may come with other habits.
    for name, value in {"do_sample": True, "temperature": 5.0, "top_k": 3}.items():
        monkeypatch.setattr(loaded.model.generation_config, name, value)
    talk, counted = record("hi", "yes", "and why?", "because"), list[int]()
    [sample] = sample_answers(loaded.model, loaded.tokenizer, [talk], 6, counted.append)
    assert (sample.question, sample.reference, counted) == ("and why?", "because", [1])
    turns = [{"role": message.role, "content": message.content} for message in talk.messages[:-1]]
    ids = loaded.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    start = len(ids)
    for _ in range(6):
        ids = [*ids, int(loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == loaded.tokenizer.eos_token_id:
            break
    assert sample.answer == loaded.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
    assert sample.answer


def test_rounds_give_every_process_as_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "world_size", lambda: 3)
    taken = []
    for rank in range(3):
        monkeypatch.setattr(group, "rank", lambda rank=rank: rank)
        taken.append([mine for mine, _ in evaluate.rounds("abcdefg")])
    assert taken == [["a", "d", "g"], ["b", "e", None], ["c", "f", None]]


@pytest.mark.slow
def test_two_processes_share_evaluation_out(tiny_base: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(Path(__file__).with_name("shares.py")), str(tiny_base), str(tmp_path / "told")]
    started = [subprocess.Popen(words, env={**os.environ, **given, "RANK": str(rank)}) for rank in range(2)]
    assert [one.wait(240) for one in started] == [0, 0]
    first, second = (json.loads((tmp_path / f"told.{rank}").read_text()) for rank in range(2))
    alone = shares.found(str(tiny_base))
    assert first == second, "both know all of it, and called the model equally often"
    for what in ("loss", "routed", "answers", "apart", "rollout"):
        assert first[what] == pytest.approx(alone[what], rel=1e-6) if what == "loss" else first[what] == alone[what]
    assert first["log_probs"] == pytest.approx(alone["log_probs"], rel=1e-6)
    assert first["alone"] == pytest.approx(alone["alone"], rel=1e-6)
    assert (alone["calls"]["layers"], first["calls"]["layers"]) == (7, 4)
    assert len(set(first["answers"])) > 1 and first["steps"]["layers"] < alone["steps"]["layers"]
