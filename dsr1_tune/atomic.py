"""Whole or not at all: files and folders are written under a temporary name and moved into place."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dsr1_tune.errors import RunError
from dsr1_tune.lock import locked


@contextmanager
def atomic_write(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing; it becomes `path` only if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") if binary else os.fdopen(handle, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not say of itself where
        raise


def check_new(path: Path) -> None:
    """Raises RunError where something is at `path`, or nothing can be written there: asked before long work."""
    hint = "choose another --out, or remove it"
    if path.exists() or path.is_symlink():
        raise RunError(f"{path}: is already there", hint=hint)
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise RunError(f"{path}: {above} is a file, not a folder", hint=hint)
    if not os.access(above, os.W_OK | os.X_OK):
        raise RunError(f"{path}: {above} cannot be written to", hint="check the permissions, or choose another --out")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary neighbouring folder; it becomes `path`, replacing an older one, only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        _give_usual_permissions(part)
        _replace_folder(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A `atomic_folder` for large output: `path` must not be there yet, and what a killed attempt left is cleared away.

    Raises RunError if something is there, or another process is writing it at this moment.
    """
    path = path.absolute()
    if os.path.ismount(path) or path in (Path.cwd(), *Path.cwd().parents):
        raise RunError(f"{path}: cannot be replaced", hint="name a folder in it that is not there yet")
    with locked(path.with_name(f".{path.name}.lock"), f"{path}: another process is writing it"):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise RunError(f"{path}: is already there", hint="choose another --out, or remove it")
        # Eight characters are mkdtemp's: those of m.v2 are not m's.
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            with atomic_folder(path) as part:
                yield part
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"Stopped; nothing is left of {path}") from None


@contextmanager
def new_file(path: Path) -> Iterator[None]:
    """Keep `path`, where nothing must be yet, from other processes while its content is made.

    Raises RunError if something is there, or another process is making it at this moment.
    """
    check_new(path)
    with locked(path.with_name(f".{path.name}.lock"), f"{path}: another process is writing it"):
        check_new(path)
        yield


def _give_usual_permissions(folder: Path) -> None:
    """Temporary folders, and the files that safetensors writes, are readable by their owner alone."""
    mask = _umask()
    for place in (folder, *folder.rglob("*")):
        place.chmod((0o777 if place.is_dir() else 0o666) & ~mask)


def _replace_folder(part: Path, path: Path) -> None:
    """Move `part` to `path`; an older folder there goes, and stays if that fails."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    if path.exists():
        path.replace(old)
    try:
        part.replace(path)
    except BaseException:
        if old.exists():
            old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether a failed write, by whatever library, means that there is no room left."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return any(words in str(error) for words in _DISK_FULL)


# What safetensors and torch.save say, who do not raise OSError.
_DISK_FULL = ("os error 28", "os error 122", "PytorchStreamWriter", "unexpected pos")


def _umask() -> int:
    """The process's umask; temporary files start out private, finished ones get the usual permissions."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
