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
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.head import logits_in_pieces
from dsr1_tune.models.llama_cpp import client
from dsr1_tune.models.llama_cpp.client import LlamaCpp
from dsr1_tune.models.load import Loaded
from dsr1_tune.models.memory import give_back
from dsr1_tune.models.ref import Adapter, Embedded, Experts, Gguf, Hub, Missing, ModelRef, RewardModel, Run, local_path
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.experts import WEIGHTS
from dsr1_tune.models.weights.checkpoint import read_header
from dsr1_tune.moe.quantized_experts import memory_of

_ANY = 1 << 30
Name = str | Path | None
"""A run folder, an adapter, a model folder, a GGUF file or a folder with one, a Hub id; None is the embedded base."""


class Scorer(Protocol):
    """What a comparison asks of a model."""

    tokenizer: Any
    num_bytes: int
    """Of its weights in memory."""
    context: int
    """The most tokens that it reads."""

    def logits(self, ids: Sequence[int], places_N: Tensor, size: int) -> Iterator[Tensor]:
        """(C, V) behind the tokens at these places, how likely each next one is; any constant may be added to a row.

        In their order, `size` at a time.
        """

    def answer(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest next token again and again; without the token that ends the turn."""


@contextmanager
def open_scorer(model: Name, other: Name, say: Callable[[str], None]) -> Iterator[Scorer]:
    """The model, gone from memory when the block ends; a GGUF file without a tokenizer beside it takes `other`'s."""
    ref = ModelRef.resolve(model)
    if isinstance(ref, Gguf):
        tokenizer = _tokenizer_for(ref.file, other)
        with LlamaCpp(ref.file) as engine:
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
    ref = ModelRef.resolve(model)
    if isinstance(ref, Embedded):
        return
    if isinstance(ref, RewardModel):
        ref.refuse()
    if isinstance(ref, Gguf):
        client.library()
        artifact.of(ref.file)
    elif isinstance(ref, Hub | Missing):
        if isinstance(ref, Missing) or ref.name.endswith(".gguf"):
            hint = "give a run, a model folder or a GGUF file"
            raise ModelError(f"{ref.name}: there is no such file or folder", hint=hint)
        hub.fetch(ref.name)  # only its small files are asked for
    elif isinstance(ref, Adapter | Experts):
        read_header(ref.path / (artifact.ADAPTER_FILE if isinstance(ref, Adapter) else WEIGHTS))
        check_present(ref.base.model)
    else:
        files = _files(ref)
        files.check()
        files.read_config()
        files.check_weights()


def _files(ref: ModelRef) -> ModelFolder:
    """A model's own folder, or that of the whole model that a run trained."""
    return ModelFolder(ref.model if isinstance(ref, Run) and ref.model else ref.path, ref.name)


def name_of(model: Name) -> str:
    """For people."""
    return embedded.NAME if model is None else str(model)


def stored_bytes(model: Name) -> int | None:
    """What a model's weights take on disk; None where they do not all lie in one folder."""
    ref = ModelRef.resolve(model)
    if isinstance(ref, Gguf):
        return ref.file.stat().st_size
    files = _files(ref)
    return (files.file_bytes or None) if (files.path / "config.json").is_file() else None


def _tokenizer_for(file: Path, other: Name) -> Any:
    """The tokenizer beside a GGUF file, else the other model's."""
    places = [file.parent]
    if other is not None:
        places += [local_path(str(other)) / inner for inner in ("", "adapter", "model", "experts")]
    for place in places:
        if (place / "tokenizer_config.json").is_file() or (place / "tokenizer.json").is_file():
            return ModelFolder(place, str(place)).read_tokenizer()
    raise ModelError(
        f"{file}: has no tokenizer beside it, and {name_of(other)} none either",
        hint="copy tokenizer.json, tokenizer_config.json and chat_template.jinja of the model into the file's folder",
    )


class _Transformers:
    """A model that transformers runs."""

    def __init__(self, loaded: Loaded) -> None:
        self.model = loaded.model.eval()
        self.tokenizer = loaded.tokenizer
        self.num_bytes = memory_of(self.model)
        self.context = int(getattr(self.model.config, "max_position_embeddings", 0) or _ANY)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], places_N: Tensor, size: int) -> Iterator[Tensor]:
        ids_1T = torch.tensor([list(ids)], device=self.model.device)
        yield from logits_in_pieces(self.model, places_N, size, input_ids=ids_1T)

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

    def logits(self, ids: Sequence[int], places_N: Tensor, size: int) -> Iterator[Tensor]:
        yield from self.engine.logprobs(ids)[places_N].split(size)

    def answer(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        return self.engine.generate(ids, max_new_tokens)
