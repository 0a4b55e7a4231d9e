"""What the converter trips over, mended: shown on stand-ins of its classes, which live in another environment."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def test_converter_names_what_its_gguf_does_not_know() -> None:
    """One family that is too new for it must not take the others of its module along."""
    gguf = SimpleNamespace(MODEL_TENSOR=SimpleNamespace(ATTN_K="there"), MODEL_ARCH=SimpleNamespace())
    code = "a = gguf.MODEL_TENSOR.ATTN_K\nb = gguf.MODEL_TENSOR.DSPARK\nmodel_arch = gguf.MODEL_ARCH.HY_V3"
    assert converter._name_what_is_absent(gguf, code) == {"DSPARK", "HY_V3"}
    assert gguf.MODEL_TENSOR.ATTN_K == "there" and gguf.MODEL_ARCH.HY_V3 == "HY_V3"


def test_converter_writes_what_glm_5_calls_for() -> None:
    class Writer:
        arch, added = "glm-dsa", dict[str, Any]()

        def add_array(self, key: str, values: list[bool]) -> None:
            self.added[key] = values

    converter._write_indexer_types(Writer)
    Writer().add_indexer_types([True, False])  # type: ignore[attr-defined]
    assert Writer.added == {"glm-dsa.attention.indexer.types": [True, False]}


def lacking(num_layers: int = 0) -> None:
    assert num_layers != 0  # a remark


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: {}["HY_V3"], "it is newer than the gguf library that comes with it, which lacks HY_V3"),
        (lambda: SimpleNamespace().add_it, "it is newer than the gguf library that comes with it, which lacks add_it"),
        (lacking, "it takes for granted that num_layers != 0 ("),
        (lambda: int("Can"), "invalid literal for int() with base 10: 'Can'"),
        (lambda: {}["hidden_size"], "KeyError: 'hidden_size'"),
    ],
)
def test_converter_reasons_tell_more_than_a_name(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(Exception) as caught:
        call()
    assert converter._why(caught.value, {"HY_V3"}).startswith(said)


def test_converter_runs_no_code_of_models() -> None:
    tokenizers = SimpleNamespace(from_pretrained=lambda *places, **settings: settings)
    converter._run_no_code_of_models(tokenizers)
    assert tokenizers.from_pretrained("place", trust_remote_code=True) == {"trust_remote_code": False}


def test_converter_says_why_it_cannot_convert(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def absent(name: str) -> Any:
        if name == "gguf":
            return SimpleNamespace()
        raise ValueError(" \n the reason \n more")

    monkeypatch.setattr(converter, "import_module", absent)
    monkeypatch.setattr("sys.argv", ["converter.py", '{"ends": {}, "takes_further": false}'])
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
