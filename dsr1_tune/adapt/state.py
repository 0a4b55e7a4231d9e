"""How far adapt has come: adapt.json, the lock beside it, and what may change on a rerun."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from dsr1_tune import __version__
from dsr1_tune.atomic import atomic_write
from dsr1_tune.config import AdaptRun
from dsr1_tune.errors import RunError
from dsr1_tune.lock import locked
from dsr1_tune.report import html
from dsr1_tune.runs.folder import hash_files

StageName = Literal["plan", "clean", "train", "merge", "quantize", "compare", "card"]
STAGES: tuple[StageName, ...] = get_args(StageName)
NAME, PLAN, _LOCK = "adapt.json", "plan.json", ".adapt.lock"
_FORMAT = "dsr1-tune adapt 1"
_LATE = ("gates", "compare", "language")
"""What only the comparison and the card are made from; they are done again where it changes."""
DONE, MISSED = "done", "missed"


@dataclass(frozen=True)
class State:
    """adapt.json of one folder.

    plan.json the estimates · data/ cleaned · run/ the training run · merged/ · model/ · report.html all on one page
    """

    folder: Path

    @property
    def file(self) -> Path:
        """adapt.json."""
        return self.folder / NAME

    def read(self) -> dict[str, Any]:
        """What it says; empty where there is none. Raises RunError if it is damaged."""
        if not self.file.is_file():
            return {}
        try:
            tree: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
            if tree["format"] != _FORMAT or not isinstance(tree["stages"], dict):
                raise ValueError("is of another version")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.file}: cannot be used: {error}", hint="choose another --out") from None
        return tree

    def write(self, **changes: Any) -> None:
        """Change entries, whole or not at all."""
        tree = {"format": _FORMAT, "version": __version__, "stages": {}, **self.read(), **changes}
        with atomic_write(self.file) as file:
            json.dump(tree, file, indent=1, ensure_ascii=False, default=str)
            file.write("\n")

    def stage(self, name: StageName) -> dict[str, Any]:
        """What is recorded of a stage; empty where it has not begun."""
        return dict(self.read().get("stages", {}).get(name, {}))

    def withdraw(self) -> None:
        """Take back what was begun, where no stage is whole: the same --out is free for a command put right."""
        if any(facts.get("status") in (DONE, MISSED) for facts in self.read().get("stages", {}).values()):
            return
        for name in (PLAN, "report.html", NAME):
            (self.folder / name).unlink(missing_ok=True)

    def is_done(self, name: StageName) -> bool:
        """Whether a stage is whole, so that it is not done again."""
        return self.stage(name).get("status") == DONE

    def note(self, name: StageName, **facts: Any) -> None:
        """Add to what is recorded of a stage."""
        stages = self.read().get("stages", {})
        self.write(stages={**stages, name: {**stages.get(name, {}), **facts}})

    @contextmanager
    def running(self, name: StageName) -> Iterator[dict[str, Any]]:
        """A stage under way: facts put into the dict are recorded at its end, with the seconds of all its attempts."""
        facts: dict[str, Any] = {}
        start = time.perf_counter()
        before = float(self.stage(name).get("seconds", 0.0))
        self.note(name, status="begun")
        status = "failed"
        try:
            yield facts
            status = DONE
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            seconds = round(before + time.perf_counter() - start, 3)
            self.note(name, **{"status": status, "seconds": seconds, **facts})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else works in the folder meanwhile; the lock ends with the process, however that ends."""
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{self.folder}: is a file", hint="choose another --out")
        others = () if self.file.is_file() or not self.folder.is_dir() else self.folder.iterdir()
        if strangers := sorted(entry.name for entry in others if entry.name != _LOCK):
            raise RunError(
                f"{self.folder}: is not empty (it holds {strangers[0]}) and no earlier try of this command",
                hint="choose another --out",
            )
        is_new = not self.folder.exists()
        try:
            with locked(self.folder / _LOCK, f"{self.folder}: another process is at work there"):
                yield
        finally:
            if is_new:
                with suppress(OSError):  # there is something in it, unless nothing was begun or it was taken back
                    self.folder.rmdir()


def begin(state: State, config: AdaptRun) -> AdaptRun:
    """Record what adapt begins with, or compare it with what an earlier try began with.

    Raises RunError, naming it, for a setting or a file that has changed since.
    """
    settings = config.model_dump(mode="json", exclude={"out"})
    hashes = hash_files(config.data.all_files)
    known = state.read()
    if not known:
        state.write(started=datetime.now(UTC).isoformat(timespec="seconds"), config=settings, data_sha256=hashes)
        return config
    before = known.get("config", {})
    olds, news = (dict(html.leaves(tree, told=lambda value: value)) for tree in (before, settings))
    for name in sorted(olds.keys() | news.keys()):
        old, new = olds.get(name), news.get(name)
        if old != new and name.partition(".")[0] not in _LATE:
            raise RunError(
                f"{state.folder}: was begun with {name}={_shown(old)}, now it is {_shown(new)}",
                hint="give the same settings again, none at all (only --out), or another --out",
            )
    for file, digest in known.get("data_sha256", {}).items():
        if hashes.get(file) != digest:
            raise RunError(
                f"{file}: has changed since {state.folder} was begun, or is gone",
                hint="put the file back as it was, or begin anew with another --out",
            )
    late = {name: settings[name] for name in _LATE}
    if late != {name: before.get(name) for name in _LATE}:
        stages = {name: facts for name, facts in known["stages"].items() if name not in ("compare", "card")}
        state.write(config=settings, stages=stages)
    return config


def begun_with(folder: Path) -> AdaptRun | None:
    """The settings that an earlier try in `folder` began with."""
    known = State(folder).read()
    return AdaptRun.model_validate({**known["config"], "out": str(folder)}) if known.get("config") else None


def _shown(value: Any) -> str:
    return "nothing" if value in (None, [], {}, "") else json.dumps(value, ensure_ascii=False)
