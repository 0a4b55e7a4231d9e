"""What is in a folder that is to be served (a model, an adapter or a GGUF file), and the command that serves it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dsr1_tune.errors import ModelError
from dsr1_tune.models import embedded
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.ref import (
    ADAPTER_CONFIG,
    Adapter,
    Gguf,
    ModelRef,
    RewardModel,
    Run,
    local_path,
    template_kwargs_of,
)
from dsr1_tune.models.tokenizer_files import GENERATION
from dsr1_tune.models.weights.checkpoint import read_header
from dsr1_tune.models.weights.index import read_json
from dsr1_tune.models.weights.stored_format import quant_method

Kind = Literal["model", "adapter", "gguf"]
ADAPTER_FILE = "adapter_model.safetensors"
# How each is called with a model, and the option that names an adapter.
_SERVERS = {
    "vllm": (("vllm", "serve"), "--lora-modules"),
    "sglang": (("python", "-m", "sglang.launch_server", "--model-path"), "--lora-paths"),
}


TEMPLATE_KWARGS = {"vllm": "--default-chat-template-kwargs", "llama.cpp": "--chat-template-kwargs"}
"""The option by which a server takes arguments of the chat template for all requests; others take them with each."""


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
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The chat template's arguments with which it was trained to be asked."""

    @property
    def format(self) -> str:
        """How its weights are quantized: none, or a `quant_method`; gguf for those files."""
        if self.kind == "gguf":
            return "gguf"
        is_quantized = self.kind == "model" and isinstance(self.config.get("quantization_config"), Mapping)
        return quant_method(self.config) if is_quantized else "none"

    @property
    def form(self) -> Literal["peft-fused", "per-expert", "dense"]:
        """How an adapter stores LoRA A and B of routed experts, if it has any."""
        if any(re.search(r"\.experts\.(base_layer\.)*lora_", name) for name in self.names):
            return "peft-fused"
        return "per-expert" if any(re.search(r"\.experts\.\d+\.", name) for name in self.names) else "dense"

    @property
    def what(self) -> str:
        """What it is, in words."""
        if self.kind == "adapter":
            return f"a PEFT adapter for the base {self.base}"
        return (
            "a GGUF file"
            if self.kind == "gguf"
            else f"a model of the kind {self.architecture or 'that it does not name'}"
        )

    @property
    def max_rank(self) -> int:
        """The largest rank in an adapter."""
        return max([int(self.config.get("r") or 1), *map(int, (self.config.get("rank_pattern") or {}).values())])


def of(place: Path | str) -> Artifact:
    """What is there; a run folder means its adapter or its model. Raises ModelError for anything that is none of it."""
    artifact = _of(place)
    return replace(artifact, template_kwargs=template_kwargs_of(artifact.path))


def _of(place: Path | str) -> Artifact:
    ref = ModelRef.resolve(place)
    if isinstance(ref, Gguf):
        return _gguf(ref.file)
    if isinstance(ref, RewardModel):
        ref.refuse()
    if isinstance(ref, Adapter):
        return _adapter(ref)
    files = ModelFolder(ref.model if isinstance(ref, Run) and ref.model else local_path(str(place)), str(place))
    if not files.path.exists():
        raise ModelError(f"{place}: there is no such folder", hint="give a model, an adapter, a run or a .gguf file")
    files.check()
    said = files.config_json, frozenset(files.checkpoint.names), files.has_tokenizer, files.has_template
    return Artifact(files.path, "model", files.architecture, *said)


def _adapter(ref: Adapter) -> Artifact:
    if not (ref.path / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{ref.path}: has {ADAPTER_CONFIG}, as a PEFT adapter, but no {ADAPTER_FILE}, its weights",
            hint="copy the adapter again, or save it as safetensors: pickled weights are not opened",
        )
    base = ref.base.model or embedded.NAME
    files = ModelFolder(local_path(base), base)
    architecture = files.architecture if (files.path / "config.json").is_file() else ""
    names = frozenset(read_header(ref.path / ADAPTER_FILE))
    return Artifact(ref.path, "adapter", architecture, read_json(ref.path / ADAPTER_CONFIG), names, base=base)


def _gguf(file: Path) -> Artifact:
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
    if artifact.template_kwargs and engine in TEMPLATE_KWARGS:
        where += [TEMPLATE_KWARGS[engine], json.dumps(dict(artifact.template_kwargs))]
    if engine == "llama.cpp":
        return ["llama-server", "--model", path, "--jinja", *where]
    if engine == "transformers":
        return ["transformers", "serve", path, *where]
    serve, named = _SERVERS[engine]
    if artifact.kind == "model":
        return [*serve, path, *where]
    rank = str(max(artifact.max_rank, 16))
    lora = ["--enable-lora", "--max-lora-rank", rank, named, f"adapter={path}"]
    return [*serve, artifact.base, *lora, *_own_ends(artifact, engine), *where]


def _own_ends(artifact: Artifact, engine: str) -> list[str]:
    """An engine reads where answers end in the base's folder: options that name what an adapter's adds to that."""
    file = artifact.path / GENERATION
    if not file.is_file():
        return []
    if engine == "vllm":
        return ["--generation-config", str(artifact.path)]
    ends = read_json(file).get("eos_token_id")
    return [] if ends is None else ["--json-model-override-args", json.dumps({"eos_token_id": ends})]
