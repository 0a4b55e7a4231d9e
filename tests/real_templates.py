"""Tokenizers of bytes with chat templates of real models, whose markers they know as added tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
_MARKER = re.compile(r"<[^<>\s'\"{}=]{2,40}>|\[/?[A-Z_]{3,}\]")


def template(name: str) -> str:
    """The text of one that TRL ships."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def tokenizer_of(source: str, eos: str = "<eos>", bos: str = "<bos>", known: bool = True, frame: str = "") -> Any:
    """Every byte a token, and what stands in the template as <...> or [...]; where not `known`, only bos and eos.

    Of a `frame`, a long text that every conversation begins with, few tokens are made, none across what a prompt may
    end with: a line, or the word "assistant".
    """
    found = _MARKER.findall(source) if known else []
    markers = list(dict.fromkeys([bos, eos, *found]))
    vocab = {token: number for number, token in enumerate([*markers, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if frame:
        whole_lines = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex("\n|assistant"), "isolated"), whole_lines]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        settings = {"initial_alphabet": sorted(alphabet), "special_tokens": markers, "show_progress": False}
        backend.train_from_iterator([frame], trainers.BpeTrainer(vocab_size=4000, **settings))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, additional_special_tokens=markers[2:]
    )
    tokenizer.chat_template = source
    return tokenizer
