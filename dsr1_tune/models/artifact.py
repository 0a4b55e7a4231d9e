"""What lies in a folder that is to be served: a model, an adapter or a GGUF file, and what its files say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dsr1_tune.errors import ModelError
from dsr1_tune.models.folder import base_of, check_folder, find_adapter, local_path
from dsr1_tune.models.llama_cpp.client import find_gguf
from dsr1_tune.models.weights.checkpoint import Checkpoint, read_header
from dsr1_tune.models.weights.index import read_json

Kind = Literal["model", "adapter", "gguf"]
ADAPTER_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Artifact:
    """What is to be served."""

    path: Path
    """The model's or adapter's folder, or the .gguf file."""
    kind: Kind
    architecture: str
    """As config.json names it, or llama.cpp for a GGUF file; of an adapter its base's, empty where that is not here."""
    config: Mapping[str, Any]
    """config.json, adapter_config.json, or the GGUF file's fields."""
    names: frozenset[str] = frozenset()
    """Of the tensors that are stored."""
    has_tokenizer: bool = True
    has_template: bool = True
    base: str = ""
    """The base that an adapter is for."""

    @property
    def format(self) -> str:
        """How its weights are quantized: none, or a `quant_method`; gguf for those files."""
        if self.kind == "gguf":
            return "gguf"
        quantization = self.config.get("quantization_config") if self.kind == "model" else None
        return str(quantization.get("quant_method", "unknown")) if isinstance(quantization, Mapping) else "none"

    @property
    def form(self) -> Literal["peft-fused", "per-expert", "dense"]:
        """How an adapter has the factors of routed experts, if it has any."""
        if any(re.search(r"\.experts\.(base_layer\.)*lora_", name) for name in self.names):
            return "peft-fused"
        return "per-expert" if any(re.search(r"\.experts\.\d+\.", name) for name in self.names) else "dense"

    @property
    def max_rank(self) -> int:
        """The largest rank in an adapter."""
        return max([int(self.config.get("r") or 1), *map(int, (self.config.get("rank_pattern") or {}).values())])


def of(place: Path | str) -> Artifact:
    """What is there; a run folder means its adapter or its model. Raises ModelError for anything that is none of it."""
    if (file := find_gguf(place)) is not None:
        return _gguf(file)
    folder = local_path(str(place))
    if (adapter := find_adapter(folder)) is not None:
        return _adapter(adapter)
    if (folder / "manifest.json").is_file() and (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not folder.exists():
        raise ModelError(f"{place}: there is no such folder", hint="give a model, an adapter, a run or a .gguf file")
    check_folder(folder, str(place))
    config = read_json(folder / "config.json")
    return Artifact(folder, "model", _architecture(config), config, frozenset(Checkpoint(folder).names), *_text(folder))


def _architecture(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _text(folder: Path) -> tuple[bool, bool]:
    """Whether there is a tokenizer, and whether it has a chat template."""
    settings = folder / "tokenizer_config.json"
    told = read_json(settings) if settings.is_file() else {}
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return has_tokenizer, (folder / "chat_template.jinja").is_file() or bool(told.get("chat_template"))


def _adapter(folder: Path) -> Artifact:
    config = read_json(folder / "adapter_config.json")
    base = base_of(folder).model or "embedded"
    place = local_path(base) / "config.json"
    architecture = _architecture(read_json(place)) if place.is_file() else ""
    names = frozenset(read_header(folder / ADAPTER_FILE))
    return Artifact(folder, "adapter", architecture, config, names, base=base)


def _gguf(file: Path) -> Artifact:
    """A GGUF file's fields and tensors. Raises ModelError if it is damaged."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        fields = {name: _value(entry) for name, entry in reader.fields.items() if len(entry.data) == 1}
        names = frozenset(tensor.name for tensor in reader.tensors)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelError(f"{file}: is damaged: {error}", hint="write or copy the file again") from error
    has_template = "tokenizer.chat_template" in fields
    architecture = str(fields.get("general.architecture", ""))
    return Artifact(file, "gguf", architecture, fields, names, "tokenizer.ggml.model" in fields, has_template)


def _value(entry: Any) -> Any:
    value = entry.parts[entry.data[0]]
    text = entry.types and entry.types[-1].name == "STRING"
    return bytes(value).decode(errors="replace") if text else value.tolist()[0]


def command_for(artifact: Artifact, engine: str, host: str = "127.0.0.1", port: int = 8000) -> list[str]:
    """The engine's own command that serves an artifact, which it must be able to load."""
    path = str(artifact.path)
    where = ["--host", host, "--port", str(port)]
    if engine == "llama.cpp":
        return ["llama-server", "--model", path, "--jinja", *where]
    if engine == "transformers":
        return ["transformers", "serve", path, *where]
    if artifact.kind == "model":
        return (
            [*_SERVERS[engine], path, *where] if engine == "vllm" else [*_SERVERS[engine], "--model-path", path, *where]
        )
    rank = str(max(artifact.max_rank, 16))
    if engine == "vllm":
        loras = ["--enable-lora", "--max-lora-rank", rank, "--lora-modules", f"adapter={path}"]
        return [*_SERVERS[engine], artifact.base, *loras, *where]
    loras = ["--enable-lora", "--max-lora-rank", rank, "--lora-paths", f"adapter={path}"]
    return [*_SERVERS[engine], "--model-path", artifact.base, *loras, *where]


_SERVERS = {"vllm": ("vllm", "serve"), "sglang": ("python", "-m", "sglang.launch_server")}
