"""Where a model came from: lineage.json in every exported folder, and whether the files are still what it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from dsr1_tune.atomic import atomic_write
from dsr1_tune.errors import RunError
from dsr1_tune.models.ref import local_path
from dsr1_tune.runs.folder import FINISHED, RunFolder

FILE = "lineage.json"
_FORMAT = "dsr1-tune lineage 1"
_GIVE = "give a folder that dsr1-tune merge, quantize or export wrote"


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


def of_run(run: RunFolder) -> tuple[Stage, ...]:
    """What a finished run says of itself: its data files, the training, and the files that came of it.

    Raises RunError for a run that is damaged, or not finished.
    """
    manifest = run.manifest()
    if manifest.get("status") != FINISHED:
        raise RunError(
            f"{run.path}: this run is not finished ({manifest.get('status')})",
            hint=f"go on with it: dsr1-tune {manifest.get('command', 'lora')} --resume {run.path}",
        )
    names = [
        "command",
        "started",
        "ended",
        "config",
        "versions",
        "machine",
        "seed",
        "processes",
        "global_batch",
        "template_kwargs",
    ]
    train = {"run": str(run.path.absolute())} | {name: manifest[name] for name in names if name in manifest}
    train |= {"seconds": manifest.get("seconds", {}), "metrics": manifest.get("metrics", {})}
    told_of_it = run.evaluation()  # but for the sample answers, which may be private
    losses = {name: told_of_it[name] for name in ("on", "before", "after") if name in told_of_it}
    train |= {"base": _base(manifest.get("base", {})), "evaluation": losses}
    output = next((folder for folder in (run.adapter, run.experts, run.model) if folder.is_dir()), None)
    if output is None:
        raise RunError(f"{run.path}: has neither adapter, experts nor model", hint="copy the whole run again")
    return (
        Stage("data", _data(run, manifest.get("data_sha256", {}))),
        Stage("train", train),
        Stage(output.name, {"folder": str(output.absolute()), "files": _hashes(output)}),
    )


def _data(run: RunFolder, hashes: Mapping[str, str]) -> dict[str, Any]:
    """The files that were given, and what was kept of them."""
    from dsr1_tune.runs.report.page import language_of  # brings transformers along, which `verify` can do without

    report = _json(run.data / "report.json")
    kept = {
        name: _facts(file) | {"num_records": _num_lines(file)}
        for name, file in (("train", run.data / "train.jsonl"), ("held_out", run.data / "eval.jsonl"))
        if file.is_file()
    }
    told = ("num_rows", "num_kept", "num_merged", "num_dropped", "dropped")
    given: dict[str, Any] = {"files": {name: {"sha256": digest} for name, digest in hashes.items()}}
    given |= {name: report[name] for name in told if name in report}
    if origin := run.manifest().get("data_origin"):  # what the run was given had been cleaned before
        given = {**origin, "cleaned": given}
    return {"kept": kept, "language": language_of(run), **given}


def _base(base: Mapping[str, Any]) -> dict[str, Any]:
    """The base by name and commit; and what its folder, where it is still there, says of itself."""
    facts = dict(base)
    folder = local_path(str(base.get("folder", "")))
    if base.get("folder") and (config := folder / "config.json").is_file():
        facts |= {"config_sha256": _facts(config)["sha256"], "model_type": _json(config).get("model_type")}
        facts |= {"license": _front_matter(folder / "README.md").get("license")}
    return {name: fact for name, fact in facts.items() if fact is not None}


def _front_matter(card: Path) -> dict[str, Any]:
    """The block of YAML with which a model card on the Hub begins; empty where there is none that can be read."""
    try:
        parts = card.read_text(encoding="utf-8").split("---\n", 2)
        tree = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _num_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def write(folder: Path, stages: Sequence[Stage]) -> Lineage:
    """Hash every file of `folder` and leave lineage.json there."""
    return _write(folder, Lineage(tuple(stages), _hashes(folder)))


def refresh(folder: Path, names: Iterable[str]) -> Lineage:
    """Hash the files of these names again, which we have just written; what is known of the others stays as it is.

    Raises RunError as `known` does.
    """
    lineage = known(folder)
    return _write(folder, Lineage(lineage.stages, {**lineage.files, **{name: _facts(folder / name) for name in names}}))


def _write(folder: Path, lineage: Lineage) -> Lineage:
    with atomic_write(folder / FILE) as file:
        json.dump({"format": _FORMAT, **asdict(lineage)}, file, indent=1, ensure_ascii=False, default=str)
        file.write("\n")
    return lineage


def known(folder: Path) -> Lineage:
    """What lineage.json says. Raises RunError where there is none, or it is damaged."""
    lineage = read(folder)
    if lineage is not None:
        return lineage
    if not folder.is_dir():
        raise RunError(f"{folder}: is no folder", hint=_GIVE)
    if (folder / "manifest.json").is_file():
        raise RunError(f"{folder}: is a run; merge it first", hint=f"dsr1-tune merge {folder} --out {folder}-merged")
    raise RunError(f"{folder}: has no {FILE}", hint=_GIVE)


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


@dataclass(frozen=True)
class Difference:
    """A file that is not as lineage.json says."""

    kind: Literal["missing", "changed", "extra"]
    file: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.file}" + (f" ({self.detail})" if self.detail else "")


def verify(folder: Path) -> list[Difference]:
    """Hash every file again and name those that are missing, changed or extra.

    Hidden files, such as those that the Hub's tools leave, do not matter. Raises RunError as `known` does.
    """
    files, there = known(folder).files, set(_files(folder))
    found = [Difference("missing", name) for name in files if name not in there]
    found += [Difference("extra", name) for name in sorted(there - set(files))]
    for name in sorted(there & set(files)):
        if detail := _changed(folder / name, files[name]):
            found.append(Difference("changed", name, detail))
    return found


def _changed(file: Path, facts: Mapping[str, Any]) -> str:
    """How a file differs from what is known of it; empty if it does not."""
    size = file.stat().st_size
    if "bytes" in facts and size != facts["bytes"]:
        return f"{size:,} bytes, was {facts['bytes']:,}"
    if _facts(file)["sha256"] != facts.get("sha256"):
        return "other content of the same size" if "bytes" in facts else "other content"
    return ""


State = Literal["the same", "changed", "no longer there"]


@dataclass(frozen=True)
class Origin:
    """A file further up, such as a data file or the adapter's, and how it stands now."""

    stage: str
    file: str
    state: State


def origins(lineage: Lineage) -> list[Origin]:
    """How the files stand that the model was made of, as far as they are still there."""
    found = []
    for stage in lineage.stages:
        files = stage.facts.get("files")
        top = Path(str(stage.facts.get("folder", "")))
        for name, facts in files.items() if isinstance(files, Mapping) else ():
            if isinstance(facts, Mapping) and facts.get("sha256"):
                file = top / name
                state: State = "no longer there"
                if file.is_file():
                    state = "changed" if _changed(file, facts) else "the same"
                found.append(Origin(stage.name, str(file), state))
    return found


def _files(folder: Path) -> list[str]:
    """Of all files but lineage.json and hidden ones, the names within the folder."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _hashes(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: _facts(folder / name) for name in _files(folder)}
