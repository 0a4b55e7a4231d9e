"""Where a model came from: lineage.json in every exported folder, and whether the files are still what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsr1_tune.errors import RunError
from dsr1_tune.whole import whole_file

FILE = "lineage.json"
_FORMAT = "dsr1-tune lineage 1"


@dataclass(frozen=True)
class Stage:
    """One step on the way: data, train, merge or quantize, and what is to be said of it, in JSON's types."""

    name: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Lineage:
    """The stages in their order, and the size and SHA-256 of every file of the folder but lineage.json itself."""

    stages: tuple[Stage, ...]
    files: Mapping[str, Mapping[str, Any]]

    def stage(self, name: str) -> Stage | None:
        """The last stage of that name."""
        return next((stage for stage in reversed(self.stages) if stage.name == name), None)


def write(folder: Path, stages: Sequence[Stage]) -> Lineage:
    """Hash every file of `folder` and leave lineage.json there."""
    lineage = Lineage(tuple(stages), {name: _facts(folder / name) for name in _files(folder)})
    with whole_file(folder / FILE) as file:
        json.dump({"format": _FORMAT, **asdict(lineage)}, file, indent=1, ensure_ascii=False, default=str)
        file.write("\n")
    return lineage


def read(folder: Path) -> Lineage | None:
    """What lineage.json says; None where there is none. Raises RunError if it is damaged."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if tree["format"] != _FORMAT:
            raise ValueError("is of another version")
        stages = tuple(Stage(stage["name"], dict(stage["facts"])) for stage in tree["stages"])
        return Lineage(stages, dict(tree["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file}: cannot be used: {error}", hint="export the model again") from None


def _files(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path != folder / FILE
    )


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
