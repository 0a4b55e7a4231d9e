"""A .gguf file in real llama.cpp: log-probabilities at every position, greedy or drawn answers, its own tokenizer.

llama.cpp comes in the wheel of xllamacpp, an optional dependency, and runs in a process of its own
(process.py).
"""

from __future__ import annotations

import codecs
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsr1_tune.errors import ModelError

INSTALL = "pip install 'dsr1-tune[gguf]'"
_CHILD = Path(__file__).with_name("process.py")
_USUAL_CONTEXT = 8192
_UNKNOWN = "unknown model architecture"
_TELLING = ("error loading model:", "GGML_ASSERT", "failed to allocate", "llama_init_from_model:", "not supported")
_ABORTED = re.compile(r"\.(cpp|c|h|cu):\d+: ")


def library() -> Path:
    """xllamacpp's shared library, which is llama.cpp. Raises ModelError where it is not installed."""
    spec = importlib.util.find_spec("xllamacpp")
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [file for place in places for file in sorted(Path(place).glob("xllamacpp*.so"))]
    if not found:
        raise ModelError("llama.cpp is needed for this, and not installed", hint=INSTALL)
    return found[0]


def version() -> str:
    """Of the llama.cpp that is installed, as its wheel says."""
    return f"xllamacpp {metadata.version('xllamacpp')}"


@cache
def knows(architecture: str) -> bool | None:
    """Whether llama.cpp has code for an architecture, as GGUF files name it; None where it is not installed.

    It is asked: given a file that says its architecture and nothing else, it misses what it would look for next.
    """
    from gguf import GGUFWriter

    try:
        library()
    except ModelError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "named.gguf"
        writer = GGUFWriter(file, architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        try:
            LlamaCpp(file, context=1, num_threads=1).close()
        except ModelError as error:
            return _UNKNOWN not in error.message
    return True


@dataclass(frozen=True)
class Spoken:
    """A token of an answer, and the text that it completes."""

    token: int
    text: str


class Failed(ModelError):
    """llama.cpp could not load a file, or came to an end over it; `why` is what it said itself."""

    def __init__(self, message: str, why: str, hint: str) -> None:
        super().__init__(message, hint)
        self.why = why


class LlamaCpp(AbstractContextManager["LlamaCpp"]):
    """A loaded .gguf file; use it as a context manager, so that its process ends.

    Raises ModelError if llama.cpp is not installed, does not support the model or cannot read the file, for what does
    not fit into its context, and if it crashes.
    """

    def __init__(self, file: Path, context: int | None = None, num_threads: int | None = None) -> None:
        """`context` in tokens; without it the model's own, at most 8,192, as it costs memory."""
        if not file.is_file():
            raise ModelError(f"{file}: there is no such file", hint="give a .gguf file")
        self.file = file
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), str(library())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # a debugger's would hide what it said
            start_new_session=True,  # Ctrl-C stops an answer, not the model
        )
        threads = num_threads or int(os.environ.get("OMP_NUM_THREADS", "0") or 0) or os.cpu_count() or 1
        room = {"context": context or 0, "at_most": context or _USUAL_CONTEXT}
        try:
            facts, _ = self._ask({"file": str(self.file), "threads": threads, **room})
        except BaseException:
            self.close()
            raise
        self.num_vocab: int = facts["vocab"]
        """V, the number of tokens."""
        self.context: int = facts["context"]
        """How many tokens fit."""
        self.description: str = facts["description"]
        """What llama.cpp calls it, such as "qwen3moe 30B.A3B Q4_K - Medium"."""
        self.chat_template: str | None = facts.get("template")
        self.bos: str = facts["bos"]
        """The token that begins a text, empty where there is none."""
        self.eos: str = facts["eos"]
        self.adds_bos: bool = facts["add_bos"]
        """Whether llama.cpp puts `bos` before every text by itself."""

    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """Log-probabilities (T, V), float32, of the next token after each of `ids`."""
        facts, data = self._ask({"do": "logits", "ids": list(map(int, ids))})
        logits_TV = torch.frombuffer(bytearray(data), dtype=torch.float32).view(facts["rows"], self.num_vocab)
        return logits_TV.log_softmax(-1)

    def generate(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest answer to `ids`, without the token that ends it."""
        return [spoken.token for spoken in self.stream(ids, max_new_tokens)]

    def stream(
        self, ids: Sequence[int], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[Spoken]:
        """The answer token by token, drawn where `temperature` is over 0; may be left before its end."""
        settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        self._send({"do": "generate", "ids": list(map(int, ids)), **settings})
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        try:
            while "ended" not in (received := self._receive())[0]:
                facts, data = received
                yield Spoken(facts["token"], decode(data))
        except ModelError:
            raise
        except BaseException:  # it is left before its end: the child looks for further requests after each token
            self._send({"do": "tokenize", "text": "", "add_special": False, "parse_special": True})
            while "ids" not in self._receive()[0]:
                pass
            raise

    def tokenize(self, text: str, add_special: bool = False, special: bool = True) -> list[int]:
        """The text's tokens by llama.cpp's own tokenizer; `special` ones in it count as such, or are text."""
        asked = {"do": "tokenize", "text": text, "add_special": add_special, "parse_special": special}
        facts, _ = self._ask(asked)
        return [int(token) for token in facts["ids"]]

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        self._send(request)
        return self._receive()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._ended() from None

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        facts: dict[str, Any] = json.loads(line)
        data = self._process.stdout.read(facts["bytes"])
        if len(data) < facts["bytes"]:
            raise self._ended()
        if "refused" in facts:
            raise ModelError(f"{self.file}: {facts['refused']}", hint="give fewer tokens, or those of this model")
        return facts, data

    def _ended(self) -> Failed:
        """Why the process is gone, from what llama.cpp said last."""
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").splitlines()
        tells = (line for line in reversed(said) if any(word in line for word in _TELLING) or _ABORTED.search(line))
        why = next(tells, "")
        why = why.rpartition("error loading model: ")[2].strip() or (said[-1].strip() if said else "")
        if code in (3, 4, 5):
            why = why or f"it does not say why (exit code {code})"
            return Failed(
                f"{self.file}: llama.cpp cannot load it: {why}",
                why,
                hint="the model may be of a shape that it does not support, or the file is cut off: write it again",
            )
        return Failed(
            f"{self.file}: llama.cpp ended with code {code}: {why}",
            f"it ended with code {code}: {why}",
            hint="the machine may be out of memory; else please report it with the model's name",
        )

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __exit__(self, *error: object) -> None:
        self.close()
