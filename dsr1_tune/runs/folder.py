"""The run folder: the names of everything a run writes, its manifest, and where it can go on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import TuneRun
from dsr1_tune.errors import RunError
from dsr1_tune.lock import locked
from dsr1_tune.models.ref import local_path

Run = TypeVar("Run", bound=TuneRun)

RUNNING, INTERRUPTED, FAILED, FINISHED = "running", "interrupted", "failed", "finished"
_WHOLE = ".whole"


@dataclass(frozen=True)
class _Place:
    name: str

    def __get__(self, folder: RunFolder, kind: type[RunFolder] | None = None) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """A run's folder; every stage finds what it needs by these names.

    manifest.json    config, data hashes, versions, base, seeds, timings, metrics, hashes of the weights that were
                     trained, and how the run stands
    data/            train.jsonl, eval.jsonl, rejected.jsonl, report.json
    checkpoints/     what --resume goes on from
    train_log.jsonl  one line per optimizer step
    tensorboard/     the same for TensorBoard
    adapter/         lora, qlora: PEFT's adapter with tokenizer and chat template
    model/           full: the whole model
    experts/         esft: the experts that were trained
    experts.json     esft: which experts those are
    eval.json        held-out loss, perplexity and sample answers, before and after
    .lock            while a run is at work there: which process that is
    experts_load.npz which experts were used before, while and after training; experts.png shows it
    report.html      all of this on one page
    """

    path: Path
    is_written_here: bool = True
    """Of several processes one writes; the others skip all writing."""

    manifest_file = _Place("manifest.json")
    lock_file = _Place(".lock")
    data = _Place("data")
    checkpoints = _Place("checkpoints")
    log_file = _Place("train_log.jsonl")
    tensorboard = _Place("tensorboard")
    adapter = _Place("adapter")
    model = _Place("model")
    experts = _Place("experts")
    choice_file = _Place("experts.json")
    eval_file = _Place("eval.json")

    @classmethod
    @contextmanager
    def new(cls, config: TuneRun, command: str) -> Iterator[RunFolder]:
        """The folder that `config.out` names, or a new one under runs/, which no other process can take meanwhile.

        It is made, and goes again where nothing is in it in the end. Raises RunError where a run already stands or is
        at work, or where something else is.
        """
        path = config.out or _default_path(config)
        made = [place for place in (path, *path.parents) if not place.exists()]
        folder = cls(config.out or _make_next(path))
        if not config.out:
            made = [folder.path, *(place for place in made if place != path)]
        try:
            if not folder.lock_file.exists():
                folder._check_vacant(command)  # before anything is made there
            with folder._held(hint="wait for it, or choose another --out"):
                folder._check_vacant(command)
                yield folder
        finally:
            for place in made:
                with suppress(OSError):  # not empty, as a rule
                    place.rmdir()

    def _check_vacant(self, command: str) -> None:
        if self.manifest_file.exists():
            status = self.manifest().get("status")
            go_on = "" if status == FINISHED else f"go on with: dsr1-tune {command} --resume {self.path}; or "
            raise RunError(f"{self.path}: already holds a run ({status})", hint=f"{go_on}choose another --out")
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file", hint="choose another --out")
        if self.path.is_dir() and any(entry != self.lock_file for entry in self.path.iterdir()):
            raise RunError(f"{self.path}: is not empty and holds no run", hint="choose another --out")

    @contextmanager
    def _held(self, hint: str) -> Iterator[None]:
        """Keep other processes from writing here."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.lock_file, f"{self.path}: a run is at work there", hint))
            except (FileExistsError, FileNotFoundError) as error:  # a link to nowhere, a place where none can be
                raise RunError(f"{self.path}: cannot be made: {error.strerror}", hint="choose another --out") from None
            yield

    def begin(self, config: TuneRun, command: str) -> None:
        """Write the manifest of a new run."""
        self.update(status=RUNNING, command=command, started=_now(), config=_config_as_json(config))

    def clear(self) -> None:
        """Remove what a run that was refused has written; the lock stays until it is let go."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry != self.lock_file:
                entry.unlink(missing_ok=True)

    @classmethod
    @contextmanager
    def reopened(cls, path: Path, command: str) -> Iterator[RunFolder]:
        """The folder of a run of `command` that is to go on, which no other process can take meanwhile.

        Raises RunError if there is none, it is finished, or still at work.
        """
        folder = cls(path)
        if not folder.manifest_file.is_file():
            raise RunError(f"{path}: holds no run (no manifest.json)", hint="give --resume the folder of a run")
        with folder._held(hint="wait for it, or stop it first"):
            folder._check_resumable(command)
            yield folder

    def _check_resumable(self, command: str) -> None:
        path = self.path
        if (known := self.manifest().get("command", command)) != command:
            raise RunError(f"{path}: is a run of {known}", hint=f"dsr1-tune {known} --resume {path}")
        if self.manifest().get("status") == FINISHED:
            score = f"score rows with it: dsr1-tune score {path} rows.jsonl"
            use = score if command == "reward" else f"talk to it with: dsr1-tune chat {path}"
            raise RunError(f"{path}: this run is finished", hint=use)

    def hash_outputs(self) -> dict[str, str]:
        """SHA-256 of the weights that the run left, and of what says how they are meant, by names in the folder."""
        places = (self.adapter, self.model, self.experts)
        files = (file for place in places for kind in ("*.safetensors", "*config.json") for file in place.glob(kind))
        return {str(file.relative_to(self.path)): _hash(file) for file in sorted(files)}

    def changed_outputs(self) -> list[str] | None:
        """The files that are gone or no longer what the run saved; None for a run that kept no hashes."""
        known = self.manifest().get("output_sha256")
        if not known:
            return None
        found = self.hash_outputs()
        return [name for name, digest in known.items() if found.get(name) != digest]

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds; raises RunError if it is damaged."""
        return _read_json(self.manifest_file)

    def update(self, **facts: Any) -> None:
        """Add facts to the manifest, or replace them; None removes one."""
        if self.is_written_here:
            facts = (self.manifest() if self.manifest_file.exists() else {}) | facts
            _write_json(self.manifest_file, {name: fact for name, fact in facts.items() if fact is not None})

    def close(self, status: str, **facts: Any) -> None:
        """Say in the manifest how the run ended."""
        self.update(status=status, ended=_now(), **facts)

    def config(self, kind: type[Run]) -> Run:
        """The config that the run was started with; raises RunError if the manifest has none that is valid."""
        try:
            return kind.model_validate(self.manifest()["config"])
        except (KeyError, ValidationError) as error:
            raise RunError(
                f"{self.manifest_file}: has no valid config: {' '.join(str(error).split())}",
                hint="it is damaged or of another version; start a new run",
            ) from None

    def evaluation(self) -> dict[str, Any]:
        """What eval.json holds so far."""
        return _read_json(self.eval_file) if self.eval_file.exists() else {}

    def write_evaluation(self, **facts: Any) -> None:
        """Add facts to eval.json."""
        if self.is_written_here:
            _write_json(self.eval_file, {**self.evaluation(), **facts})

    def holds_work(self) -> bool:
        """Whether anything was measured or trained that should not be lost."""
        return self.eval_file.exists() or any(self.checkpoints.glob("*"))

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of this step is, or will be."""
        return self.checkpoints / f"checkpoint-{step}"

    def mark_whole(self, step: int) -> None:
        """Note that the checkpoint of this step is completely written."""
        if self.is_written_here:
            with atomic_write(self.checkpoint(step) / _WHOLE):
                pass

    def is_whole(self, step: int) -> bool:
        """Whether there is a checkpoint of this step, completely written."""
        return (self.checkpoint(step) / _WHOLE).exists()

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that was completely written, if any."""
        return max((mark.parent for mark in self.checkpoints.glob(f"checkpoint-*/{_WHOLE}")), key=step_of, default=None)

    def check_data(self, hashes: Mapping[str, str]) -> None:
        """Raise RunError if the data files are no longer those that the run began with."""
        for name, known in self.manifest().get("data_sha256", {}).items():
            if hashes.get(name) != known:
                what = "has changed since the run began" if hashes.get(name) else "is no longer there"
                raise RunError(
                    f"{name}: {what}, so the held-out records would not be the same",
                    hint="restore the file, or start a new run",
                )

    def check_start(self, hashes: Mapping[str, str]) -> None:
        """Raise RunError if the adapter that the run began with, its reference, is no longer the same."""
        if self.manifest().get("start_sha256", {}) != dict(hashes):
            raise RunError(
                f"{next(iter(hashes), self.path)}: is no longer the adapter that the run began with",
                hint="restore it, or start a new run",
            )

    def check_base(self, name: str, revision: str | None) -> None:
        """Raise RunError if the base is no longer the one that the run began with."""
        known = self.manifest().get("base", {})
        # A folder may have been named from another working directory.
        is_same = name == known.get("name") or str(local_path(name).absolute()) == known.get("folder")
        if known and not (is_same and revision == known.get("revision")):
            raise RunError(
                f"the base is now {name} ({revision}), but the run began on {known['name']} ({known['revision']})",
                hint="restore that base, or start a new run",
            )

    def encoded_sha256(self) -> str | None:
        """SHA-256 of the token ids and labels that the run began with; None for a run that kept none."""
        return self.manifest().get("encoded_sha256")

    def encodes_otherwise(self, digest: str) -> bool:
        """Whether rows are other tokens and labels now than when the run began: those have this SHA-256.

        A run that kept none and has no `template` settings is of a version that showed calls and thoughts otherwise.
        """
        if known := self.encoded_sha256():
            return known != digest
        return "template" not in self.manifest().get("config", {})


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written, from its name."""
    return int(checkpoint.name.rpartition("-")[2])


def hash_files(files: tuple[Path, ...]) -> dict[str, str]:
    """SHA-256 of each file, by its absolute path; empty for one that is gone, or is no file (a pipe has no end)."""
    return {str(path.absolute()): _hash(path) for path in files}


def _hash(path: Path) -> str:
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _config_as_json(config: TuneRun) -> dict[str, Any]:
    """The config with absolute paths, so that the run can go on from any folder."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for name in ("files", "eval_files"):
        tree["data"][name] = [str(path.absolute()) for path in getattr(config.data, name)]
    if config.base.model and local_path(config.base.model).exists():
        tree["base"]["model"] = str(local_path(config.base.model).absolute())
    return tree


def _default_path(config: TuneRun) -> Path:
    """runs/<data>-<date>-<time>."""
    stem = config.data.name.split(".")[0] if config.data.files else "run"
    return Path("runs") / f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _make_next(path: Path) -> Path:
    """Make a folder of this name, or with a number behind it where other runs have taken those before."""
    for number in count(1):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            free.mkdir(parents=True)
            break
    return free


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}", hint="this run is damaged; start a new one") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: is not an object", hint="this run is damaged; start a new one")
    return value


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")
