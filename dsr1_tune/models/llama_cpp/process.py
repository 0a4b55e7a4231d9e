"""llama.cpp in a process of its own, for client.py: a crash in its C++ ends this process and no other.

Run as `python process.py LIBRARY`. It reads one JSON request a line from stdin and answers on stdout with one
JSON line, which says how many raw bytes follow it. Only llama.h's functions are called; of its structs, which change
between releases, only those fields are touched that have been in the same place for years, and what they do is checked.
"""

from __future__ import annotations

import ctypes as c
import json
import math
import os
import random
import select
import sys
from typing import Any

_MAX_STRUCT = 256  # in words: passed by value, and so copied whole; larger than any of llama.h's


class _Settings(c.Structure):
    """llama_model_params or llama_context_params; of the latter the first word is n_ctx."""

    _fields_ = [("words", c.c_uint32 * _MAX_STRUCT)]


class _Batch(c.Structure):
    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.c_void_p),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (_Settings, []),
    "llama_context_default_params": (_Settings, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _Settings]),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, _Settings]),
    "llama_n_ctx": (c.c_uint32, [c.c_void_p]),
    "llama_n_batch": (c.c_uint32, [c.c_void_p]),
    "llama_set_n_threads": (None, [c.c_void_p, c.c_int32, c.c_int32]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_memory_seq_rm": (c.c_bool, [c.c_void_p, c.c_int32, c.c_int32, c.c_int32]),
    "llama_batch_init": (_Batch, [c.c_int32, c.c_int32, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, _Batch]),
    "llama_get_logits_ith": (c.POINTER(c.c_float), [c.c_void_p, c.c_int32]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_model_n_ctx_train": (c.c_int32, [c.c_void_p]),
    "llama_model_desc": (c.c_int32, [c.c_void_p, c.c_char_p, c.c_size_t]),
    "llama_model_meta_val_str": (c.c_int32, [c.c_void_p, c.c_char_p, c.c_char_p, c.c_size_t]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_vocab_bos": (c.c_int32, [c.c_void_p]),
    "llama_vocab_eos": (c.c_int32, [c.c_void_p]),
    "llama_vocab_get_add_bos": (c.c_bool, [c.c_void_p]),
    "llama_vocab_get_text": (c.c_char_p, [c.c_void_p, c.c_int32]),
    "llama_vocab_is_eog": (c.c_bool, [c.c_void_p, c.c_int32]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
    "llama_token_to_piece": (c.c_int32, [c.c_void_p, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool]),
}


class Refused(Exception):
    """A request that cannot be met; the process goes on."""


class Engine:
    """One loaded model with one sequence."""

    def __init__(self, lib: Any, file: str, threads: int, context: int, at_most: int) -> None:
        """`context` of 0 takes the model's own, but not over `at_most`."""
        self.lib = lib
        self.model = lib.llama_model_load_from_file(os.fsencode(file), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(3)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.num_vocab = lib.llama_vocab_n_tokens(self.vocab)
        settings = lib.llama_context_default_params()
        settings.words[0] = min(context or lib.llama_model_n_ctx_train(self.model), at_most)
        self.context = lib.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(4)
        lib.llama_set_n_threads(self.context, threads, threads)
        self.num_context = lib.llama_n_ctx(self.context)
        if self.num_context < settings.words[0]:
            raise SystemExit(5)  # llama_context_params is not what it was
        self.num_batch = min(lib.llama_n_batch(self.context), 512)
        self.batch = lib.llama_batch_init(self.num_batch, 0, 1)
        self.memory = lib.llama_get_memory(self.context)
        self.seen: list[int] = []

    def facts(self) -> dict[str, Any]:
        """What the other side wants to know of the model."""
        lib, text = self.lib, c.create_string_buffer(1 << 20)
        found: dict[str, Any] = {
            "vocab": self.num_vocab,
            "context": self.num_context,
            "add_bos": lib.llama_vocab_get_add_bos(self.vocab),
        }
        lib.llama_model_desc(self.model, text, len(text))
        found["description"] = text.value.decode(errors="replace")
        if lib.llama_model_meta_val_str(self.model, b"tokenizer.chat_template", text, len(text)) >= 0:
            found["template"] = text.value.decode(errors="replace")
        for name in ("bos", "eos"):
            token = getattr(lib, f"llama_vocab_{name}")(self.vocab)
            found[name] = lib.llama_vocab_get_text(self.vocab, token).decode(errors="replace") if token >= 0 else ""
        return found

    def logits(self, ids: list[int]) -> bytes:
        """Those after every one of `ids`, (T, V) in float32."""
        self._check(ids, 0)
        self.lib.llama_memory_clear(self.memory, True)
        self.seen = []
        rows = [row for start in range(0, len(ids), self.num_batch) for row in self._decode(ids, start, True)]
        self.seen = []  # a prompt that shares its beginning is to be computed anew: batches differ in rounding
        return b"".join(rows)

    def generate(self, ids: list[int], max_new_tokens: int, temperature: float, seed: int) -> str:
        """Answer token after token until the model ends, the room does, or something is asked meanwhile."""
        self._check(ids, 1)
        draw = random.Random(seed)
        common = 0
        while common < min(len(self.seen), len(ids) - 1) and self.seen[common] == ids[common]:
            common += 1
        if not self.lib.llama_memory_seq_rm(self.memory, 0, common, -1):
            self.lib.llama_memory_clear(self.memory, True)
            common = 0
        self.seen = ids[:common]
        row = b""
        while len(self.seen) < len(ids):
            row = self._decode(ids, len(self.seen), False)[-1]
        for _ in range(max_new_tokens):
            token = _pick(memoryview(row).cast("f"), temperature, draw)
            if self.lib.llama_vocab_is_eog(self.vocab, token):
                return "end"
            answer({"token": token}, self._piece(token))
            if select.select([0], [], [], 0)[0]:
                return "stopped"
            if len(self.seen) == self.num_context:
                return "full"
            row = self._decode([*self.seen, token], len(self.seen), False)[-1]
        return "length"

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """The text's tokens; special ones in it are taken as such where they are parsed."""
        data = text.encode()
        room = len(data) + 8
        tokens = (c.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, parse_special)
        return list(tokens[:count])

    def _check(self, ids: list[int], room: int) -> None:
        if not ids:
            raise Refused("no tokens were given")
        if len(ids) + room > self.num_context:
            raise Refused(f"{len(ids):,} tokens do not fit into a context of {self.num_context:,}")
        if wrong := next((token for token in ids if not 0 <= token < self.num_vocab), None):
            raise Refused(f"token {wrong} is none of the model's {self.num_vocab:,}")

    def _decode(self, ids: list[int], start: int, are_all_wanted: bool) -> list[bytes]:
        """Run the batch that begins at `start`; the logits of all its tokens, or of the last."""
        end = min(len(ids), start + self.num_batch)
        batch = self.batch
        batch.n_tokens = end - start
        for place, position in enumerate(range(start, end)):
            batch.token[place], batch.pos[place] = ids[position], position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = are_all_wanted or position == end - 1
        if code := self.lib.llama_decode(self.context, batch):
            self.lib.llama_memory_clear(self.memory, True)
            self.seen = []
            raise Refused(f"llama_decode failed with {code}")
        self.seen += ids[start:end]
        places = range(end - start) if are_all_wanted else [end - start - 1]
        rows = (self.lib.llama_get_logits_ith(self.context, place) for place in places)
        return [c.string_at(row, 4 * self.num_vocab) for row in rows]

    def _piece(self, token: int) -> bytes:
        text = c.create_string_buffer(1024)
        count = self.lib.llama_token_to_piece(self.vocab, token, text, len(text), 0, False)
        return text.raw[: max(count, 0)]


def _pick(row: Any, temperature: float, draw: random.Random) -> int:
    """The likeliest token; over a temperature of 0 one drawn from softmax(row / temperature)."""
    scores = row.tolist()
    best = max(scores)
    if temperature <= 0:
        return int(scores.index(best))
    return draw.choices(range(len(scores)), [math.exp((score - best) / temperature) for score in scores])[0]


def answer(facts: dict[str, Any], data: bytes = b"") -> None:
    """One line of JSON, and the bytes that it announces."""
    _OUT.write(json.dumps({**facts, "bytes": len(data)}).encode() + b"\n" + data)
    _OUT.flush()


def main() -> None:
    """Load a model as the first request says, then do as the others do until stdin ends."""
    lib = c.CDLL(sys.argv[1])
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.llama_backend_init()
    # Unbuffered: `generate` asks whether more has come, and a buffer would hide it.
    asking = os.fdopen(0, "rb", buffering=0)
    first = json.loads(asking.readline())
    engine = Engine(lib, **first)
    answer(engine.facts())
    while line := asking.readline():
        asked = json.loads(line)
        try:
            what = asked.pop("do")
            if what == "logits":
                answer({"rows": len(asked["ids"])}, engine.logits(**asked))
            elif what == "generate":
                answer({"ended": engine.generate(**asked)})
            elif what == "tokenize":
                answer({"ids": engine.tokenize(**asked)})
        except Refused as error:
            answer({"refused": str(error)})


if __name__ == "__main__":
    # Answers go out on the real stdout; whatever the library prints there goes to stderr.
    _OUT = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    main()
