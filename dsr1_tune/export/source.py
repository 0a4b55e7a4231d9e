"""What an export starts from: a model's weights read one tensor at a time, and all that is known of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dsr1_tune.export.lineage import Stage
from dsr1_tune.models.checkpoint import Weights
from dsr1_tune.models.layout import Layout
from dsr1_tune.runs.folder import RunFolder


@dataclass(frozen=True)
class Source:
    """A model that lies in a folder, or is made of a base and what a run trained while it is read."""

    name: str
    """For people: the folder or the run."""
    weights: Weights
    """Its tensors in 16 or 32 bits, under the names that they have on disk; block-FP8 is multiplied out."""
    folder: Path
    """Where config.json, tokenizer and the like lie."""
    config: Mapping[str, Any]
    """What its config.json is to say, but for what a quantiser adds."""
    skeleton: nn.Module
    """The model without weights."""
    layout: Layout
    """Which stored tensor is which part of it: `layout.part(name)`, `layout.is_matrix(name)`."""
    stages: tuple[Stage, ...]
    """Where it came from, so far."""
    run: RunFolder | None
    """The run that its training and held-out rows come from, where it is known and still there."""


def open_source(path: Path | str, progress: Callable[[str], None] | None = None) -> Source:
    """A model folder as it is, or a finished run merged into its base while it is read.

    Raises ModelError for anything that is neither, or is quantised already, and RunError for a run that is not
    finished.
    """
    raise NotImplementedError


WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def copy_sidecars(source: Source, folder: Path, config: Mapping[str, Any] | None = None) -> None:
    """Tokenizer, chat template, generation config, licence and the like, unchanged; and config.json with `config`."""
    for file in sorted(source.folder.iterdir()):
        is_ours = file.name in ("config.json", "lineage.json", "manifest.json", "README.md")
        if file.is_file() and not file.name.startswith(".") and not is_ours and not file.name.endswith(WEIGHT_FILES):
            shutil.copyfile(file, folder / file.name)
    if config is None and (source.folder / "config.json").is_file() and _same(source):
        shutil.copyfile(source.folder / "config.json", folder / "config.json")
        return
    tree = dict(source.config if config is None else config)
    (folder / "config.json").write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _same(source: Source) -> bool:
    """Whether the source's config.json says what the copy is to say, to be copied as it is, byte by byte."""
    stored: Any = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    return bool(stored == source.config)
