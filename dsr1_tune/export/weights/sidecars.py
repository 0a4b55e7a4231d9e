"""What goes along with the weights: tokenizer, chat template, licence and the like; and config.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.tokenizer_files import copy_tokenizer, write_generation_config
from dsr1_tune.models.weights.index import read_json

if TYPE_CHECKING:
    from dsr1_tune.export.weights.source import OpenBase, Source

OURS = {*["config.json", "lineage.json", "manifest.json", "README.md", "compare.json", "compare.html", "Modelfile"]}
"""What is written anew, or would be untrue of another model."""
WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")


def copy_sidecars(
    source: Source | OpenBase,
    folder: Path,
    config: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Tokenizer, chat template, licence and the like, unchanged; generation_config.json; and config.json.

    The one names every token that ends an answer, and `say` is told where the source's own did not; the other says
    what `config` says, without one what the source's is to say.
    """
    copy_files(source.folder, folder)
    tokenizer = ModelFolder(source.folder, str(source.folder)).read_tokenizer()
    if added := write_generation_config(source.folder, tokenizer, folder):
        say(added)
    tree = source.config if config is None else config
    if read_json(source.folder / "config.json") == tree:
        shutil.copyfile(source.folder / "config.json", folder / "config.json")
    else:
        write_config(tree, folder)


def copy_files(source: Path, folder: Path, but: Collection[str] = OURS) -> None:
    """Every file of a model's folder as it is, but for weights, hidden ones and those named."""
    for file in sorted(source.iterdir()):
        is_other = file.name in but or file.name.startswith(".")
        if file.is_file() and not is_other and not file.name.endswith(WEIGHT_FILES):
            shutil.copyfile(file, folder / file.name)
    copy_tokenizer(source, folder)


def write_config(tree: Mapping[str, Any], folder: Path) -> None:
    """config.json, as transformers writes it."""
    text = json.dumps(dict(tree), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
