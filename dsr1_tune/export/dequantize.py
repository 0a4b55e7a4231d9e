"""`dequantize`: a 16-bit copy of a quantized model, made tensor by tensor; it can be trained and merged into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from dsr1_tune import __version__
from dsr1_tune.atomic import new_folder
from dsr1_tune.errors import ModelError
from dsr1_tune.export import lineage
from dsr1_tune.export.lineage import Stage
from dsr1_tune.export.weights.progress import counted, names_of, num_bytes
from dsr1_tune.export.weights.sidecars import OURS, copy_files, write_config
from dsr1_tune.models import hub
from dsr1_tune.models.folder import EXAMPLE, ModelFolder
from dsr1_tune.models.meta import meta_model
from dsr1_tune.models.ref import Folder, Hub, ModelRef
from dsr1_tune.models.weights.apart import as_transformers_stores
from dsr1_tune.models.weights.checkpoint import NAMES, Weights, write_weights
from dsr1_tune.models.weights.dequantized import TOLD_BESIDE, Dequantized
from dsr1_tune.models.weights.index import weight_files
from dsr1_tune.models.weights.layout import Layout
from dsr1_tune.models.weights.quantized import forms
from dsr1_tune.runs.console import Narrator, quiet_libraries
from dsr1_tune.text.amount import amount

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# The model card stays: what it says of the model's origin and licence is true of the copy.
_NOT_COPIED = OURS - {"README.md"} | {*TOLD_BESIDE}
_BESIDE = ("README*", "LICENSE*", "*.tiktoken")
"""What else of a model on the Hub is kept."""
_ENTRIES = ("quantization_config", "compression_config", "expert_dtype")


def run(source: Path | str, out: Path, dtype: str | None = None, console: Console | None = None) -> Path:
    """Write the quantized model at `source`, a folder or a Hub id, to the folder `out`, in 16 bits.

    `dtype` is bfloat16, float16 or float32; without it the one that the model's config names, else bfloat16. Whole or
    not at all, and the source is only read. Memory: the largest tensor, twice. Raises ModelError, naming the tensor,
    for weights that cannot be read, and for what is not quantized.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    folder, revision = _find(source)
    files = ModelFolder(folder, str(source))
    files.check()
    tree = files.config_json
    number = DTYPES[dtype or _own_dtype(tree)]
    narrator.stage(f"Dequantize {source}")
    with new_folder(out) as part:
        copy_files(folder, part, _NOT_COPIED)
        write_config(_config(tree, number), part)
        model = _without_weights(ModelFolder(part, str(source)), narrator)
        shapes = {name: tuple(tensor.shape) for name, tensor in _state(model).items()}
        weights = Dequantized(folder, number, shapes)
        copy: Weights = weights
        if model is not None:  # a copy that no one could load is refused before it is written
            copy = as_transformers_stores(weights, Layout.of(model, names_of(weights)))
        narrator.say(
            f"{amount(len(weights.quantized), 'weight')} of {len(names_of(weights)):,} are stored in "
            f"{forms(weights.quantized.values())}; as {str(number).removeprefix('torch.')} all take "
            f"{num_bytes(weights) / 2**30:,.1f} GiB in place of {weights.checkpoint.num_bytes / 2**30:,.1f}."
        )
        with counted(narrator, copy) as advance:
            write_weights(copy, part, advance, num_threads=torch.get_num_threads())
        facts: dict[str, Any] = {
            "from": str(folder.absolute()),
            "was": forms(weights.quantized.values()),
            "dtype": NAMES[number],
        }
        facts |= {"num_quantized": len(weights.quantized), "dsr1_tune": __version__}
        lineage.write(part, (*_stages(folder, str(source), revision), Stage("dequantize", facts)))
    return out


def _find(source: Path | str) -> tuple[Path, str | None]:
    """The folder, and the commit of a model on the Hub, which is downloaded."""
    ref = ModelRef.resolve(source)
    if isinstance(ref, Hub):
        folder, revision = hub.fetch(ref.name)
        return hub.fetch(ref.name, revision, (*hub.DESCRIPTIVE, *_BESIDE, *weight_files(folder)))
    if isinstance(ref, Folder):
        return ref.path, None
    raise ModelError(f"{source}: is no folder of a model in safetensors", hint=f"give {EXAMPLE}")


def _own_dtype(tree: Mapping[str, Any]) -> str:
    """The 16 bits that a config names, else bfloat16."""
    text = tree.get("text_config")
    for one in (tree, text if isinstance(text, dict) else {}):
        named = str(one.get("dtype") or one.get("torch_dtype")).removeprefix("torch.")
        if named in ("bfloat16", "float16"):
            return named
    return "bfloat16"


def _config(tree: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """A config.json's object without a word of quantization, naming the number format."""
    plain = {name: value for name, value in tree.items() if name not in _ENTRIES}
    if isinstance(text := plain.get("text_config"), dict):
        plain["text_config"] = _config(text, dtype) if {*text} & {*_ENTRIES, "dtype", "torch_dtype"} else text
    return plain | {"torch_dtype" if "torch_dtype" in tree else "dtype": str(dtype).removeprefix("torch.")}


def _without_weights(files: ModelFolder, narrator: Narrator) -> Any:
    """The model that the copy will be, to see whether its tensors have a place in it; None where it is not known."""
    try:
        return meta_model(files.read_config())
    except ModelError as error:
        narrator.say(f"{error.message} Whether the copy's tensors are all that the model has is not looked at.")
        return None


def _state(model: Any) -> Mapping[str, Tensor]:
    return model.state_dict() if model is not None else {}


def _stages(folder: Path, name: str, revision: str | None) -> tuple[Stage, ...]:
    """Where the quantized model came from."""
    earlier = lineage.read(folder)
    return earlier.stages if earlier else (Stage("model", {"name": name, "revision": revision}),)
