"""One at a time: a lock file that names the process that holds it, and that a dead one leaves to the next.

The operating system holds the lock (flock) and gives it back however the process ends, by kill -9 too. The file tells
the others who it is. Not every disk that machines share passes flock on from one to another, so a lock that another
machine wrote is believed. Where there is no flock at all (Lustre without it, Windows) what is written decides: whether
the process of that number, begun at that time, still runs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

import psutil
from filelock import FileLock

from dsr1_tune.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_BUSY = (errno.EACCES, errno.EAGAIN)
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_SECONDS, _CLOCK_SECONDS = 0.05, 2.0
_ATTEMPTS = 1000
# What is built for all takes a minute or two: so old a lock of another machine was left behind.
_LEFT_SECONDS = 15 * 60.0


@contextmanager
def locked(file: Path, busy: str, hint: str = "wait for it, or choose another --out") -> Iterator[None]:
    """Hold the lock `file`, which goes in the end; its folder is made where it is missing.

    Raises RunError where another has it: `busy`, and which process of which machine that is.
    """
    taken = _take(file)
    if isinstance(taken, _Busy):
        raise _refusal(file, busy, hint, taken)
    try:
        yield
    finally:
        taken.release()


@contextmanager
def locked_in_turn(file: Path) -> Iterator[None]:
    """As `locked`, but wait while another has it."""
    while isinstance(taken := _take(file, believed_for=_LEFT_SECONDS), _Busy):
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        taken.release()


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as the file tells it."""

    pid: int
    host: str
    boot: str
    """Names the running system, which containers share whatever their hosts are called; empty where it has no name."""
    began: float
    """When the process began: a later one may have the same number."""
    since: float
    """When it took the lock."""

    @classmethod
    def here(cls) -> Holder:
        """This process, now."""
        return cls(os.getpid(), socket.gethostname(), _boot(), _began(os.getpid()), time.time())

    @property
    def age(self) -> float:
        """For how many seconds it has had the lock."""
        return time.time() - self.since

    @property
    def is_of_host(self) -> bool:
        """Whether its numbers of processes are those of this host."""
        return self.host == socket.gethostname()

    @property
    def shares_system(self) -> bool:
        """Whether its system is this one, or was this host's before it was last started."""
        return self.is_of_host or (bool(self.boot) and self.boot == _boot())

    @property
    def runs_here(self) -> bool:
        """Whether this very process still runs on this host."""
        is_same_boot = self.is_of_host and self.boot == _boot()
        return is_same_boot and abs(_began(self.pid) - self.began) < _CLOCK_SECONDS

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {datetime.fromtimestamp(self.since):%Y-%m-%d %H:%M:%S}"


def holder_of(file: Path) -> Holder | None:
    """Who holds the lock `file`, or held it when it was killed; None where nothing is written."""
    try:
        return Holder(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class _Busy:
    """Another has the lock."""

    holder: Holder | None
    is_seen: bool
    """Whether it certainly still runs; if not, it is on another machine."""


@dataclass(frozen=True)
class _Taken:
    """This process has the lock."""

    file: Path
    descriptor: int

    def release(self) -> None:
        """Let go, and remove the file while nobody else can have it."""
        if fcntl is None:  # Windows removes no open file; and as long as this process runs, no other takes it
            _close(self.descriptor)
            self.file.unlink(missing_ok=True)
            return
        with suppress(OSError):
            if _is_at(self.file, self.descriptor):
                self.file.unlink()
        _close(self.descriptor)


_descriptors: set[int] = set()


def _close(descriptor: int) -> None:
    if descriptor in _descriptors:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _close_all() -> None:
    """A forked child has its parent's lock too, and would keep it when that is killed."""
    for descriptor in tuple(_descriptors):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)


def _take(file: Path, believed_for: float = math.inf) -> _Taken | _Busy:
    """The lock, or who has it; a lock of another machine is believed for so many seconds."""
    for attempt in count(1):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, is_new = _open(file)
        except FileNotFoundError:
            if attempt == _ATTEMPTS:  # a place where nothing can be made
                raise
            continue  # another's release has just removed it, or its folder
        _descriptors.add(descriptor)
        outcome: _Taken | _Busy | None = None
        try:
            outcome = _try(file, descriptor, is_new, believed_for)
        except OSError as error:  # a full disk
            if is_new:
                file.unlink(missing_ok=True)
            error.filename = error.filename or str(file)
            raise
        finally:
            if not isinstance(outcome, _Taken):
                _close(descriptor)
        if outcome:
            return outcome
    raise AssertionError


def _open(file: Path) -> tuple[int, bool]:
    """The file open, and whether it is new: of several machines one makes it."""
    with suppress(FileExistsError):
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    return os.open(file, os.O_RDWR), False


def _try(file: Path, descriptor: int, is_new: bool, believed_for: float) -> _Taken | _Busy | None:
    """The lock, who has it, or None where the file has been removed in the meantime."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return _Busy(_written(file, patience=1.0), is_seen=True)
        if error.errno in _NO_FLOCK:
            return _try_without_flock(file, descriptor, is_new, believed_for)
        if error.errno == errno.ESTALE:
            return None
        raise
    if not _is_at(file, descriptor):
        return None
    before = None if is_new else _written(file, patience=_POLL_SECONDS)
    if before and not before.shares_system and before.age < believed_for:
        return _Busy(before, is_seen=False)
    _write(file, descriptor)
    return _Taken(file, descriptor)


def _try_without_flock(file: Path, descriptor: int, is_new: bool, believed_for: float) -> _Taken | _Busy | None:
    name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"dsr1-tune-{name}.lock"):  # two must not find the same one dead
        if not _is_at(file, descriptor):
            return None
        before = None if is_new else _written(file, patience=_POLL_SECONDS)
        if before and (before.runs_here or (not before.is_of_host and before.age < believed_for)):
            return _Busy(before, is_seen=before.is_of_host)
        _write(file, descriptor)
        return _Taken(file, descriptor)


def _written(file: Path, patience: float) -> Holder | None:
    """Who holds the lock; one that has just taken it may not yet have written that."""
    deadline = time.monotonic() + patience
    while (holder := holder_of(file)) is None and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return holder


def _write(file: Path, descriptor: int) -> None:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(Holder.here())).encode() + b"\n")
        os.fsync(descriptor)
    except OSError as error:  # on a full disk, say
        raise OSError(error.errno, error.strerror, str(file)) from error


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _refusal(file: Path, busy: str, hint: str, other: _Busy) -> RunError:
    if other.holder is None:
        return RunError(busy, hint=hint)
    if other.is_seen:
        return RunError(f"{busy}: {other.holder}", hint=hint)
    return RunError(
        f"{busy}: {other.holder}; from {socket.gethostname()} it cannot be seen whether it still runs",
        hint=f"{hint}; if that process or machine is gone, remove {file} and try again",
    )


def _boot() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _began(pid: int) -> float:
    """When a process began, in seconds; minus infinity where there is none."""
    try:
        process = psutil.Process(pid)
        is_over = process.status() == psutil.STATUS_ZOMBIE
        return -math.inf if is_over else float(process.create_time())
    except psutil.Error:
        return -math.inf
