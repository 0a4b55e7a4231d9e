"""A base's tokenizer goes along byte by byte, and the generation config names all that ends an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import Adapter, Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load, locate
from dsr1_tune.models.tokenizer_files import copy_tokenizer, unnamed_ends, write_generation_config
from dsr1_tune.models.trained.experts import save_experts
from dsr1_tune.models.trained.full import save_model
from dsr1_tune.models.trained.lora import add_lora, save_adapter
from tests.conftest import CHATML, save_tiny
from tests.real_templates import tokenizer_of


@pytest.fixture(scope="module")
def qwen_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen2.5's bases are: texts end at <|endoftext|>, turns at <|im_end|>, and only the template says so."""
    tokenizer = tokenizer_of(CHATML, eos="<|endoftext|>")
    return save_tiny(tmp_path_factory.mktemp("qwen") / "base", tokenizer, "llama", vocab_size=260)


def test_copied_tokenizer_is_the_same_and_nothing_else(tmp_path: Path) -> None:
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"]
    names += ["tokenizer.model", "chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
    base, out = tmp_path / "base", tmp_path / "out"
    (base / "additional_chat_templates").mkdir(parents=True)
    out.mkdir()
    for name in (*names, "config.json", "model.safetensors", "tokenization_own.py", "README.md"):
        (base / name).write_bytes(name.encode() + b"\r\n\xff")
    copy_tokenizer(base, out)
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == sorted(names)
    assert all((out / name).read_bytes() == (base / name).read_bytes() for name in names)


@pytest.mark.parametrize("is_in_config", [True, False])
@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
def test_what_is_trained_carries_the_bases_own_tokenizer(
    tiny_base: Path, tmp_path: Path, kind: str, is_in_config: bool
) -> None:
    """As transformers 4 wrote it, which cannot read what transformers 5 writes in its place."""
    base = shutil.copytree(tiny_base, tmp_path / "base")
    ours = json.loads((base / "tokenizer_config.json").read_text())
    tree = {"tokenizer_class": kind, "eos_token": ours["eos_token"], "pad_token": None, "clean_up": False}
    if is_in_config:
        tree["chat_template"] = (base / "chat_template.jinja").read_text()
        (base / "chat_template.jinja").unlink()
    (base / "tokenizer_config.json").write_text(json.dumps(tree, indent=4))
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": ours["eos_token"]}, indent=8))
    located = locate(Base(model=str(base)))
    model = load(Base(model=str(base))).model
    save_model(model, located, tmp_path / "model")
    save_experts(model, located, tmp_path / "experts")
    save_adapter(add_lora(model, Adapter(groups=("attention",))), located, tmp_path / "adapter")
    for place in ("model", "experts", "adapter"):
        names = {file.name for file in (tmp_path / place).iterdir() if "token" in file.name or "chat" in file.name}
        assert names == {file.name for file in base.iterdir() if "token" in file.name or "chat" in file.name}
        assert all((tmp_path / place / name).read_bytes() == (base / name).read_bytes() for name in names), place


def test_loaded_model_stops_at_the_end_of_a_turn(qwen_base: Path) -> None:
    loaded = load(Base(model=str(qwen_base)))
    stops = loaded.tokenizer.convert_ids_to_tokens(loaded.model.generation_config.eos_token_id)
    assert set(stops) == {"<|endoftext|>", "<|im_end|>"}


def test_generation_config_is_extended_and_else_as_it_was(qwen_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(qwen_base, tmp_path / "base")
    (base / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": 1, "top_p": 0.8}')
    tokenizer = locate(Base(model=str(base))).tokenizer
    said = write_generation_config(base, tokenizer, tmp_path)
    assert "answers also end at <|im_end|>" in said
    ids = sorted(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    tree = json.loads((tmp_path / "generation_config.json").read_text())
    assert list(tree.items()) == [("temperature", 0.7), ("eos_token_id", ids), ("top_p", 0.8)]


def test_generation_config_that_names_all_is_copied(qwen_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(qwen_base, tmp_path / "base")
    tokenizer = locate(Base(model=str(base))).tokenizer
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    (base / "generation_config.json").write_text(f'{{"eos_token_id":{ids}}}')
    assert write_generation_config(base, tokenizer, tmp_path, always=False) == ""
    assert not (tmp_path / "generation_config.json").exists()
    assert write_generation_config(base, tokenizer, tmp_path) == ""
    assert (tmp_path / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


def test_generation_config_is_made_where_there_is_none(qwen_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(qwen_base, tmp_path / "base")
    (base / "generation_config.json").unlink()
    located = locate(Base(model=str(base)))
    assert unnamed_ends(base, located.tokenizer) == ["<|im_end|>"]
    write_generation_config(base, located.tokenizer, tmp_path)
    tree = json.loads((tmp_path / "generation_config.json").read_text())
    assert tree == {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": sorted(located.ends.ids)}


def test_locate_says_that_a_templates_mark_is_no_token(tmp_path: Path) -> None:
    said: list[str] = []
    folder = save_tiny(tmp_path / "base", tokenizer_of(CHATML, eos="</s>", known=False), "llama")
    locate(Base(model=str(folder)), said.append)
    assert any("'<|im_end|>'" in line and "ended by </s>" in line for line in said)


def test_locate_refuses_a_base_whose_answers_never_end(tmp_path: Path) -> None:
    tokenizer: Any = tokenizer_of("{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer.eos_token = tokenizer.pad_token = None
    folder = save_tiny(tmp_path / "base", tokenizer, "llama", eos_token_id=None)
    with pytest.raises(ModelError, match=r"base: nothing ends an answer"):
        locate(Base(model=str(folder)))
