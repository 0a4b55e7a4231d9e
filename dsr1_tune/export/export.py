"""`export`: merge, quantize, compare, card; and only what passed its gates becomes the `current` version."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console

from dsr1_tune.config import ExportRun
from dsr1_tune.errors import ConfigError, RunError
from dsr1_tune.export.comparison import page
from dsr1_tune.export.comparison.gates import GatesMissed
from dsr1_tune.export.formats import registry
from dsr1_tune.export.steps import Steps
from dsr1_tune.export.weights.source import find_trained
from dsr1_tune.lock import locked
from dsr1_tune.models.ref import local_path
from dsr1_tune.runs.console import Narrator, quiet_libraries

CURRENT, VERSIONS, MISSED, WORK = "current", "versions", "missed", ".unfinished"
_LOCK = ".lock"


def run(config: ExportRun, console: Console | None = None) -> Path:
    """Make a version of the run and let `current` link to it if it passes the gates; returns the version's folder.

    Under `config.out`: versions/<time>-<format>/ with compare.json, compare.html and the card; missed/<time>-<format>/
    has the comparison of what did not pass. Whatever goes wrong, the version that was current stays so. Raises
    GatesMissed, or what merging, quantizing and comparing raise.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    form = registry.pick(config.quantize)
    trained = _run_folder(config)
    out = config.out or Path("exports") / trained.absolute().name
    with _held(out), _keeping_current(out, narrator), _work(out) as work:
        name = _new_name(out, form.label(config.quantize) if form else "merged")
        steps = Steps(trained, work / trained.absolute().name, work / name, config, console)
        steps.merge()
        steps.quantize()
        found = steps.compare(("the merged model", name) if form else (str(trained), f"{name}, merged"))
        if found.missed:
            report = out / MISSED / name
            report.mkdir(parents=True, exist_ok=True)
            for file in (page.JSON_NAME, page.HTML_NAME):
                shutil.move(steps.made / file, report / file)
            ways = ", or ".join(registry.gentler(config.quantize))
            raise GatesMissed(
                "\nmissed: ".join(found.missed),
                hint=f"the comparison is in {report}" + (f"; what loses less: {ways}" if ways else ""),
            )
        steps.card()
        version = out / VERSIONS / name
        version.parent.mkdir(exist_ok=True)
        steps.made.rename(version)
        _point(out / CURRENT, version)
    narrator.say(f"\n{out / CURRENT} is now {version}, with its card and its comparison")
    return version


def _run_folder(config: ExportRun) -> Path:
    if config.run is None:
        raise ConfigError("no run is given", hint="dsr1-tune export runs/medical-... --to nf4")
    folder = local_path(str(config.run))
    if not folder.is_dir():
        raise RunError(f"{config.run}: there is no such folder", hint="give the folder of a finished run")
    if find_trained(folder) is None:
        raise RunError(f"{config.run}: is no finished run and no adapter", hint="give the folder that training left")
    return folder


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Nobody else exports into `out` in the meantime. The lock ends with the process, however that ends."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file", hint="choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    strangers = [entry.name for entry in out.iterdir() if entry.name not in {CURRENT, VERSIONS, MISSED, WORK, _LOCK}]
    if strangers:
        raise RunError(
            f"{out}: holds other things than versions, such as {sorted(strangers)[0]}", hint="choose another --out"
        )
    if (out / CURRENT).exists() and not (out / CURRENT).is_symlink():
        raise RunError(f"{out / CURRENT}: is no link", hint="choose another --out, or move it away")
    with locked(out / _LOCK, f"{out}: another export is at work there"):
        yield


@contextmanager
def _keeping_current(out: Path, narrator: Narrator) -> Iterator[None]:
    """When something goes wrong, say that the current version is still the same."""
    before = current(out)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            link = out / CURRENT
            still = f"{link} is still {before}, as it was." if before else None
            narrator.say(f"\n{still or f'No version was made current; {link} links to none.'}")
        raise


def current(out: Path) -> Path | None:
    """The version that `current` links to, if it is there."""
    link = out / CURRENT
    return link.resolve() if link.is_symlink() and link.exists() else None


@contextmanager
def _work(out: Path) -> Iterator[Path]:
    """A hidden folder for unfinished results on the same disk, removed afterwards, as is what a killed attempt left."""
    work = out / WORK
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _new_name(out: Path, label: str) -> str:
    """<time>-<format>, and a number behind it should that exist."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{label}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(name for name in names if not any((out / place / name).exists() for place in (VERSIONS, MISSED)))


def _point(link: Path, version: Path) -> None:
    """Let `link` link to the version, in one step: at no moment is there none."""
    handle = os.open(version.parent, os.O_RDONLY)
    try:
        os.fsync(handle)  # so that a power cut leaves no link to nothing
    finally:
        os.close(handle)
    new = link.parent / WORK / f".{link.name}"
    new.symlink_to(Path(VERSIONS) / version.name)
    new.replace(link)
