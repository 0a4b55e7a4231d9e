"""Which files hold a model's weights, and what its JSON files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsr1_tune.errors import ModelError

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
COPY_AGAIN = "copy or download the model again; the weights do not belong to its config.json or are damaged"


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: cannot be read: {gist(error)}", hint="copy the file again") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{file}: holds no JSON object", hint="copy the file again")
    return tree


def weight_files(folder: Path) -> list[str]:
    """The names of the model's safetensors files, those that its index lists or the only one."""
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ModelError(f"{folder / INDEX}: lists no weights", hint="copy the file again")
        return sorted(set(map(str, listed.values())))
    return [ONE_FILE]


def gist(error: BaseException) -> str:
    """The first line of an error that says something, with the next where it only announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
