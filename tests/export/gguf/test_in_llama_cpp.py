"""A GGUF file in llama.cpp itself, and talking to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dsr1_tune.config import Base
from dsr1_tune.data.record import Message
from dsr1_tune.errors import ModelError
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import load
from dsr1_tune.models.ref import Gguf, ModelRef
from dsr1_tune.serve.chat import GgufConversation, as_json
from tests.export.gguf.conftest import quantized
from tests.real_templates import template


@pytest.fixture(scope="module")
def engine(in_q4: tuple[Path, str]) -> Iterator[LlamaCpp]:
    with LlamaCpp(in_q4[0]) as running:
        yield running


IDS = [0, *range(40, 60), 1]


def test_llama_cpp_gives_probabilities_at_every_position(engine: LlamaCpp) -> None:
    logprobs_TV = engine.logprobs(IDS)
    assert logprobs_TV.shape == (len(IDS), engine.num_vocab)
    assert torch.allclose(logprobs_TV.exp().sum(-1), torch.ones(len(IDS)), atol=1e-5)
    assert torch.equal(engine.logprobs(IDS), logprobs_TV)
    assert torch.allclose(engine.logprobs(IDS[:9]), logprobs_TV[:9], atol=1e-4)


def test_llama_cpp_takes_a_text_longer_than_a_batch(engine: LlamaCpp, folder: Path) -> None:
    ids = torch.randint(2, 258, (510,), generator=torch.Generator().manual_seed(2)).tolist()
    whole_TV = engine.logprobs(ids)
    assert whole_TV.shape[0] == 510
    assert not torch.equal(whole_TV[-1], engine.logprobs(ids[-1:])[0])


def test_llama_cpp_answers_greedily_with_the_likeliest(engine: LlamaCpp) -> None:
    answer = engine.generate(IDS, 8)
    for place, token in enumerate(answer):
        assert int(engine.logprobs(IDS + answer[:place])[-1].argmax()) == token
    assert engine.generate(IDS + answer[:3], 5) == answer[3:]  # what it has seen already is not computed again
    assert engine.generate(IDS, 8) == answer


def test_llama_cpp_answer_may_be_left_before_its_end(engine: LlamaCpp) -> None:
    first = next(engine.stream(IDS, 400, temperature=1.0, seed=1))
    assert first.token == next(engine.stream(IDS, 400, temperature=1.0, seed=1)).token
    assert engine.generate(IDS, 4) == engine.generate(IDS, 40)[:4]
    assert len({next(engine.stream(IDS, 1, temperature=5.0, seed=seed)).token for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("ids", "said"), [([], "no tokens"), ([1, 258], "token 258 is none of"), ([5] * 513, "513 tokens do not fit")]
)
def test_llama_cpp_refuses_wrong_tokens_and_goes_on(ids: list[int], said: str, engine: LlamaCpp) -> None:
    with pytest.raises(ModelError, match=said):
        engine.logprobs(ids)
    assert engine.logprobs(IDS).shape[0] == len(IDS)


def test_llama_cpp_refuses_a_file_that_is_cut_off(in_q4: tuple[Path, str], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(in_q4[0].read_bytes()[:-5000])
    with pytest.raises(ModelError, match=r"llama\.cpp cannot load it: tensor .* not within the file bounds"):
        LlamaCpp(cut)
    with pytest.raises(ModelError, match="there is no such file"):
        LlamaCpp(tmp_path / "other.gguf")


def test_llama_cpp_crash_is_an_error_message(in_q4: tuple[Path, str]) -> None:
    with LlamaCpp(in_q4[0]) as running:
        running._process.kill()
        with pytest.raises(ModelError, match=r"llama\.cpp ended with code -9"):
            running.logprobs(IDS)


def test_llama_cpp_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as caught:
        quantized(folder, tmp_path / "out", "q8_0")
    assert caught.value.hint == "pip install 'dsr1-tune[gguf]'"


def test_gguf_is_the_file_that_is_meant(in_q4: tuple[Path, str], folder: Path, tmp_path: Path) -> None:
    for path in (in_q4[0], in_q4[0].parent, str(in_q4[0])):
        found = ModelRef.resolve(path)
        assert isinstance(found, Gguf) and found.file == in_q4[0]
    for path in (folder, tmp_path, "deepseek-ai/DeepSeek-V3", None):
        assert not isinstance(ModelRef.resolve(path), Gguf)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    several = ModelRef.resolve(tmp_path)
    assert isinstance(several, Gguf)
    with pytest.raises(ModelError, match=r"holds 2 \.gguf files"):
        _ = several.file


def test_gguf_chat_gives_the_answer_to_the_very_prompt(engine: LlamaCpp, folder: Path) -> None:
    tokenizer = load(Base(model=str(folder))).tokenizer
    conversation, pieces = GgufConversation(engine, max_new_tokens=12), list[str]()
    conversation.system = "be brief"
    first = conversation.ask("hello", pieces.append)
    assert first == "".join(pieces).strip()
    conversation.ask("again", pieces.append)
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer.decode(engine.generate(ids, 12)).strip() == first
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * 2


def test_gguf_chat_tells_a_template_that_refuses_a_system_prompt_before_the_question(
    engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = GgufConversation(engine, max_new_tokens=4)
    plain = conversation._encode([Message("user", "be brief\n\nhello")])
    monkeypatch.setattr(engine, "chat_template", template("gemma"))
    asked = conversation._encode([Message("user", "be brief\n\nhello")])
    conversation.system = "be brief"
    assert conversation._encode([Message("user", "hello")]) == asked != plain


@pytest.mark.parametrize("opened", ["<think>\n", ""])
def test_gguf_chat_as_json_asks_the_prompt_whether_a_thought_was_opened(
    engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch, opened: str
) -> None:
    source = engine.chat_template or ""
    monkeypatch.setattr(engine, "chat_template", source + "{% if add_generation_prompt %}" + opened + "{% endif %}")
    conversation, lines = GgufConversation(engine, max_new_tokens=4), list[str]()
    as_json(conversation, "hello", lines.append)
    told, said = json.loads("".join(lines)), conversation.turns[-1].content
    assert said and (told["answer"], told["thinking"]) == (("", said) if opened else (said, None))


def test_gguf_chat_forgets_the_oldest_where_the_context_ends(engine: LlamaCpp) -> None:
    conversation = GgufConversation(engine, max_new_tokens=4)
    for letter in "abc":
        conversation.ask(letter * 180, lambda text: None)
    assert [turn.content[0] for turn in conversation.turns if turn.role == "user"] == ["b", "c"]
    with pytest.raises(ModelError, match="the question is"):
        conversation.ask("x" * 1000, lambda text: None)


def test_gguf_chat_keeps_what_was_said_at_ctrl_c(engine: LlamaCpp) -> None:
    conversation, whole = GgufConversation(engine, max_new_tokens=40), GgufConversation(engine, max_new_tokens=40)
    heard: list[str] = []

    def interrupt(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversation.ask("hello", interrupt)
    assert whole.ask("hello", lambda text: None).startswith("".join(heard[:2]).strip())
    assert conversation.turns[-1].content == "".join(heard).strip()


def test_gguf_chat_command_answers(in_q4: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    from dsr1_tune.cli import app

    result = CliRunner().invoke(app, ["chat", str(in_q4[0].parent), "-p", "hello", "--max-new-tokens", "5"])
    assert result.exit_code == 0
    assert result.stdout.strip()
