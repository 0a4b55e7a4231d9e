"""Log-probabilities of answers, against one answer at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dsr1_tune.align.preference.log_probs import log_probs
from dsr1_tune.runs import evaluate


def test_log_probs_are_those_of_one_answer_at_a_time(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    asked = [
        (
            [draw.randrange(258) for _ in range(draw.randint(1, 30))],
            [draw.randrange(258) for _ in range(number % 9 + 1)],
        )
        for number in range(23)
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).train()
    monkeypatch.setattr(evaluate, "MAX_BATCH_TOKENS", 90)
    counted: list[int] = []
    found = log_probs(model, asked, 1, counted.append)
    assert model.training and sum(counted) == 23 and len(counted) > 3
    model.eval()
    for (prompt, answer), value in zip(asked, found, strict=True):
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*prompt, *answer]])).logits[0]
        told = logits_TV.double().log_softmax(-1)
        plain = sum(float(told[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))
        assert value == pytest.approx(plain, rel=1e-5)
