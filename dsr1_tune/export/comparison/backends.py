"""A model that can be measured, whatever it is stored as: transformers' or llama.cpp's, one in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError
from dsr1_tune.models import artifact, embedded, hub
from dsr1_tune.models.folder import (
    base_of,
    check_folder,
    check_weights,
    find_adapter,
    local_path,
    read_config,
    read_tokenizer,
)
from dsr1_tune.models.llama_cpp import client
from dsr1_tune.models.llama_cpp.client import LlamaCpp, find_gguf
from dsr1_tune.models.load import Loaded
from dsr1_tune.models.memory import give_back
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.experts import WEIGHTS, find_trained_experts
from dsr1_tune.models.weights.checkpoint import read_header
from dsr1_tune.moe.quantized_experts import memory_of

Name = str | Path | None
"""A run folder, an adapter, a model folder, a GGUF file or a folder with one, a Hub id; None is the embedded base."""


class Scorer(Protocol):
    """What a comparison asks of a model."""

    tokenizer: Any
    num_bytes: int
    """Of its weights in memory."""
    context: int
    """The most tokens that it reads."""

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(T, V): behind each token, how likely each next one is; any constant may be added to a row."""

    def answer(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest next token again and again; without the token that ends the turn."""


@contextmanager
def open_scorer(model: Name, other: Name, say: Callable[[str], None]) -> Iterator[Scorer]:
    """The model, gone from memory when the block ends; a GGUF file without a tokenizer beside it takes `other`'s."""
    if (file := find_gguf(model)) is not None:
        tokenizer = _tokenizer_for(file, other)
        with LlamaCpp(file) as engine:
            yield _LlamaCpp(engine, tokenizer)
        return
    scorer = _Transformers(load_with_adapter(model, say))
    try:
        yield scorer
    finally:
        del scorer.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        give_back()


def check_present(model: Name) -> None:
    """Refuse at once what its files' headers tell to be no model: measuring the other one may take an hour."""
    if model is None or str(model) == embedded.NAME:
        return
    name, folder = str(model), local_path(str(model))
    if (file := find_gguf(model)) is not None:
        client.library()
        artifact.of(file)
    elif not folder.exists():
        _check_elsewhere(name)
    elif (adapter := find_adapter(model)) is not None:
        read_header(adapter / artifact.ADAPTER_FILE)
        check_present(base_of(adapter).model)
    elif (experts := find_trained_experts(model)) is not None:
        read_header(experts / WEIGHTS)
        check_present(base_of(experts).model)
    else:
        folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
        check_folder(folder, name)
        read_config(folder, name)
        check_weights(folder, name)


def _check_elsewhere(name: str) -> None:
    """What is not here may be on the Hub, unless it is written as a path; only its small files are asked for."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf"):
        raise ModelError(f"{name}: there is no such file or folder", hint="give a run, a model folder or a GGUF file")
    hub.fetch(name)


def name_of(model: Name) -> str:
    """For people."""
    return embedded.NAME if model is None else str(model)


def stored_bytes(model: Name) -> int | None:
    """What a model's weights take on disk; None where they are not all in one folder."""
    if model is None:
        return None
    if (file := find_gguf(model)) is not None:
        return file.stat().st_size
    folder = local_path(str(model))
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    files = list(folder.glob("*.safetensors")) if (folder / "config.json").is_file() else []
    return sum(file.stat().st_size for file in files) or None


def _tokenizer_for(file: Path, other: Name) -> Any:
    """The tokenizer beside a GGUF file, else the other model's."""
    for place in (file.parent, *_places(other)):
        if (place / "tokenizer_config.json").is_file() or (place / "tokenizer.json").is_file():
            return read_tokenizer(place, str(place))
    raise ModelError(
        f"{file}: has no tokenizer beside it, and {name_of(other)} none either",
        hint="copy tokenizer.json, tokenizer_config.json and chat_template.jinja of the model into the file's folder",
    )


def _places(model: Name) -> list[Path]:
    """Where a model's tokenizer may be."""
    if model is None or not local_path(str(model)).is_dir():
        return []
    folder = local_path(str(model))
    return [folder, *(folder / name for name in ("adapter", "model", "experts"))]


class _Transformers:
    """A model that transformers runs."""

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model.eval()
        self.tokenizer = loaded.tokenizer
        self.num_bytes = memory_of(self.model)
        self.context = int(getattr(self.model.config, "max_position_embeddings", 0) or _ANY)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        device = self.model.device
        result: Tensor = self.model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0]
        return result

    @torch.inference_mode()
    def answer(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        asked = torch.tensor([list(ids)], device=self.model.device)
        output = self.model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        said = [int(token) for token in output[0, len(ids) :]]
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return said[:-1] if said and said[-1] in ends else said


_ANY = 1 << 30


class _LlamaCpp:
    """A GGUF file that llama.cpp runs, with transformers' tokenizer before it."""

    def __init__(self, engine: LlamaCpp, tokenizer: Any) -> None:
        if len(tokenizer) > engine.num_vocab:
            raise ModelError(
                f"{engine.file}: knows {engine.num_vocab:,} tokens, the tokenizer has {len(tokenizer):,}",
                hint="put the tokenizer that the file was made with beside it",
            )
        self.engine = engine
        self.tokenizer = tokenizer
        self.num_bytes = engine.file.stat().st_size
        self.context = engine.context

    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.engine.logprobs(ids)

    def answer(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        return self.engine.generate(ids, max_new_tokens)
