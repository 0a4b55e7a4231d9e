"""What the GGUF converter reads: a folder with 16-bit weights, and a config.json that leaves nothing to guess.

llama.cpp takes what a config does not say for granted, and so runs some models wrongly without a word. What is known
of that is set right here, or refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from dsr1_tune.errors import ModelError
from dsr1_tune.export.weights.progress import names_of, num_bytes, num_elements
from dsr1_tune.export.weights.sidecars import copy_sidecars
from dsr1_tune.export.weights.source import Source
from dsr1_tune.models.weights.checkpoint import write_weights
from dsr1_tune.models.weights.index import INDEX, ONE_FILE
from dsr1_tune.runs.console import Narrator

OTHERS = "quantize it to nf4 or int8, which run everywhere, or to w4a16 or fp8 for vLLM and SGLang"
"""What to do with a model that llama.cpp is not for."""


def architecture_of(source: Source) -> str:
    """The architecture that the converter looks for, as config.json names it, or transformers where it does not."""
    return str((source.config.get("architectures") or [type(source.meta_model).__name__])[0])


def unsupported(config: Any) -> list[str]:
    """What llama.cpp would not run, or would run wrongly, of a model that converts; `config` is transformers'."""
    rope = getattr(config, "rope_parameters", None) or {}
    is_latent = getattr(config, "kv_lora_rank", None) is not None
    wrong = {
        # llama.cpp does the one for every Qwen3-MoE and the other for every Qwen2-MoE, whatever the config says.
        "expert weights that are not made to sum to 1 (norm_topk_prob: false)": config.model_type == "qwen3_moe"
        and not config.norm_topk_prob,
        "expert weights that are made to sum to 1 (norm_topk_prob: true)": config.model_type == "qwen2_moe"
        and config.norm_topk_prob,
    }
    latent = {
        "biases in its latent attention": getattr(config, "attention_bias", False),
        "rotary positions of type longrope": rope.get("rope_type") == "longrope",
        "a YaRN whose mscale is not its mscale_all_dim": rope.get("rope_type") == "yarn"
        and rope.get("mscale") != rope.get("mscale_all_dim"),
        "rotary positions in halves (rope_interleave: false)": getattr(config, "rope_interleave", True) is False,
    }
    return [what for what, is_so in (wrong | (latent if is_latent else {})).items() if is_so]


def refuse_unsupported(source: Source) -> None:
    """Raise ModelError for a model that converts, but that llama.cpp would not run, or would run wrongly."""
    if found := unsupported(source.meta_model.config):
        raise ModelError(
            f"{source.name}: llama.cpp cannot run it: it has {', '.join(found)}",
            hint=OTHERS,
        )


def config_for_llama_cpp(source: Source) -> dict[str, Any]:
    """The source's config.json with everything said that the converter would otherwise assume."""
    config: Any = source.meta_model.config
    tree = {name: value for name, value in source.config.items() if name != "quantization_config"}
    tree["architectures"] = [architecture_of(source)]
    # Older files say rope_scaling and rope_theta, newer ones rope_parameters; the converter takes the one or the other.
    if rope := getattr(config, "rope_parameters", None):
        tree.pop("rope_scaling", None)
        tree["rope_parameters"] = dict(rope)
        if isinstance(rope.get("rope_theta"), (int, float)):
            tree["rope_theta"] = rope["rope_theta"]
    # Layers that predict further tokens are counted, so they must be there.
    if tree.get("num_nextn_predict_layers") and not further_layers(source):
        tree["num_nextn_predict_layers"] = 0
    return tree


def further_layers(source: Source) -> tuple[str, ...]:
    """The stored tensors of layers that predict further tokens, behind the model's own or under a name apart."""
    num_layers = int(getattr(source.meta_model.config, "num_hidden_layers", 0))
    numbered = ((name, re.match(r"model\.layers\.(\d+)\.", name)) for name in names_of(source.weights))
    return tuple(name for name, found in numbered if name.startswith("mtp.") or (found and int(found[1]) >= num_layers))


def prepare(source: Source, folder: Path, narrator: Narrator) -> None:
    """Fill `folder` for the converter: links to weights that lie on disk as they are, else the weights written out."""
    folder.mkdir()
    copy_sidecars(source, folder, config_for_llama_cpp(source))
    for code in folder.glob("*.py"):
        code.unlink()
    if files := _as_they_lie(source):
        for file in files:
            (folder / file.name).symlink_to(os.path.abspath(file))  # noqa: PTH100 - resolving a cache's links loses names
        return
    size = num_bytes(source.weights)
    narrator.say(f"Writing the 16-bit model ({size / 2**20:,.1f} MiB) for the converter")
    with narrator.counting("writing", size) as advance:
        write_weights(source.weights, folder, advance)


def _as_they_lie(source: Source) -> list[Path]:
    """The files that hold the very weights, all of them; empty where some are yet to be computed."""
    stored = [source.weights.stored(name) for name in names_of(source.weights)]
    places = {place.file for place in stored if place}
    if not all(stored):
        return []
    index = source.folder / INDEX
    if any(place.parent != source.folder for place in places):
        return []
    if not index.is_file():
        return sorted(places) if [place.name for place in places] == [ONE_FILE] else []
    listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return [*sorted(places), index] if listed == {place.name for place in places} else []


def check_room(source: Source, folder: Path, num_bytes_out: int) -> None:
    """Raise ModelError if the disk cannot hold the steps between: the model in 16 bits, twice if it is to be merged."""
    need = num_bytes_out + 2 * num_elements(source.weights) * (1 if _as_they_lie(source) else 2)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ModelError(
            f"{folder.parent}: converting needs about {need / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB are free",
            hint="make room there, or give an --out on another disk",
        )
