"""Scores of conversations under a reward model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dsr1_tune.align.rewards.component import NoScore
from dsr1_tune.align.rewards.scoring import encode_answer, finite_score, max_context, score_conversations
from dsr1_tune.config import Base
from dsr1_tune.data.record import Drop, Message
from dsr1_tune.models.load import load_located, locate
from dsr1_tune.models.trained.reward_model import ScalarModel

PROMPT = (Message("user", "Which animal?"),)


@pytest.fixture
def model(tiny_base: Path) -> ScalarModel:
    torch.manual_seed(0)
    loaded = load_located(locate(Base(model=str(tiny_base))), "float32")
    return ScalarModel(loaded.model, loaded.tokenizer).eval()


def test_score_conversations_gives_each_its_own_score_in_any_batch(model: ScalarModel) -> None:
    counted: list[int] = []
    texts = ["a cat", " ", "a dog " * 9, "a cat"]
    together = score_conversations(model, [(PROMPT, text) for text in texts], 3, counted.append)
    assert isinstance(together[1], NoScore) and sum(counted) == 3
    alone = [score_conversations(model, [(PROMPT, text)])[0] for text in (texts[0], texts[2])]
    assert [together[0], together[2]] == pytest.approx(alone, abs=1e-5)
    assert together[0] == pytest.approx(together[3], abs=1e-5) and together[0] != pytest.approx(together[2], abs=1e-4)


def test_encode_answer_refuses_what_is_beyond_the_context(model: ScalarModel) -> None:
    assert max_context(model) == 512
    assert isinstance(encode_answer(model, PROMPT, Message("assistant", "a" * 600), max_context(model)), Drop)
    ids = encode_answer(model, PROMPT, Message("assistant", "a cat"), max_context(model))
    assert isinstance(ids, tuple) and len(ids) > len("a cat")


def test_finite_score_refuses_what_is_no_number() -> None:
    assert finite_score(1.5) == 1.5
    assert isinstance(finite_score(math.nan), NoScore) and isinstance(finite_score(math.inf), NoScore)
