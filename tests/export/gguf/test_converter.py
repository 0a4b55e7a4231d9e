"""What the converter trips over, mended: shown on stand-ins of its classes, which live in another environment."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsr1_tune.export.gguf import converter


class Model:
    """The converter's text model, which knows one tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.dir_model = folder

    def get_vocab_base_pre(self, tokenizer: Any) -> str:
        if tokenizer != "known":
            raise NotImplementedError
        return "qwen2"


@pytest.fixture
def model(tmp_path: Path) -> type[Model]:
    patched = type("Patched", (Model,), {"get_vocab_base_pre": Model.get_vocab_base_pre})
    converter._know_plain_bytes(patched)
    return patched


def test_converter_takes_a_tokenizer_that_splits_as_gpt2_for_one(model: type[Model], tmp_path: Path) -> None:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    for split, name in ((plain, "gpt-2"), (plain | {"use_regex": False}, None), ({"type": "Metaspace"}, None)):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": split}))
        assert model(tmp_path).get_vocab_base_pre("known") == "qwen2"
        if name:
            assert model(tmp_path).get_vocab_base_pre("new") == name
        else:
            with pytest.raises(NotImplementedError, match="does not know how its tokenizer splits words"):
                model(tmp_path).get_vocab_base_pre("new")


def test_converter_always_writes_merges() -> None:
    class Vocab:
        load_merges, merges = True, list[str]()

        def add_to_gguf(self, writer: list[Any], quiet: bool = False) -> None:
            writer += self.merges

    converter._always_write_merges(Vocab)
    written: list[str] = []
    Vocab().add_to_gguf(written)
    assert len(written) == 1 and len(written[0].split(" ")) == 2


def test_converter_names_tensors_that_gguf_does_not_know() -> None:
    gguf = SimpleNamespace(MODEL_TENSOR=SimpleNamespace(DSPARK_MARKOV_W1="there"))
    converter._name_absent_tensors(gguf)
    assert gguf.MODEL_TENSOR.DSPARK_MARKOV_W1 == "there" and gguf.MODEL_TENSOR.DSPARK_CONF_PROJ is None


def test_converter_runs_no_code_of_models() -> None:
    tokenizers = SimpleNamespace(from_pretrained=lambda *places, **settings: settings)
    converter._run_no_code_of_models(tokenizers)
    assert tokenizers.from_pretrained("place", trust_remote_code=True) == {"trust_remote_code": False}


def test_converter_says_why_it_cannot_convert(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def absent(name: str) -> Any:
        if name == "gguf":
            return SimpleNamespace(MODEL_TENSOR=SimpleNamespace())
        raise ValueError(" \n the reason \n more")

    monkeypatch.setattr(converter, "import_module", absent)
    with pytest.raises(SystemExit) as left:
        converter.main()
    assert left.value.code == 1 and capsys.readouterr().out == f"{converter.FAILED}the reason\n"


def test_converter_names_the_ends_that_it_is_given() -> None:
    class Vocab:
        def __init__(self) -> None:
            self.special_token_ids = {"eos": 1, "eot": 2}

        def add_to_gguf(self, writer: dict[str, int], quiet: bool = False) -> None:
            writer |= self.special_token_ids

    converter._name_special_tokens(Vocab, {"eot": 7, "eom": 8})
    written: dict[str, int] = {}
    Vocab().add_to_gguf(written)
    assert written == {"eos": 1, "eot": 7, "eom": 8}
