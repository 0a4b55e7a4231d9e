"""Starting one command as several processes of this machine: signals passed on, one exit code, one error.

torch's own launcher interrupts its processes again when Ctrl-C has already reached them, and kills them half a minute
later, which may be in the middle of a checkpoint. So the processes are started and waited for here.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from dsr1_tune.errors import TuneError

INTERRUPTED = 130

_POLL_SECONDS = 0.05
# When one process has failed the others notice and end, or they hang: so long they have for each step of the way out.
_PATIENCE_SECONDS = 10.0
# A process that is stopped (SIGSTOP) while others run keeps them waiting without end; so long it may be.
_STOPPED_SECONDS = 8.0
_LOOK_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1
_USERS_ERROR, _KILLED, _OTHER, _CONSEQUENCE = range(4)


def is_launched() -> bool:
    """Whether this process is one of several that were started together: by us, by `accelerate launch` or torchrun."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def takes_signals() -> bool:
    """Whether this thread may say what Ctrl-C and SIGTERM do; only the main one may."""
    return threading.current_thread() is threading.main_thread()


def processes_of(run: Path) -> int:
    """How many processes a run was last trained by; 1 where its folder does not say."""
    try:
        return int(json.loads((run / "manifest.json").read_text(encoding="utf-8"))["processes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1


def run_in_processes(arguments: Sequence[str], number: int) -> int:
    """Run `dsr1-tune ARGUMENTS` as `number` processes; returns the exit code.

    The first process has the terminal, the others are silent. Ctrl-C and SIGTERM reach each of them once. When one
    fails, all end, and what it has to say is printed, once.
    """
    processes: list[_Process] = []
    with ExitStack() as files, _passing_signals_to(processes) as was_interrupted:
        with socket.socket() as probe:  # a port where the processes can meet
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            for rank in range(number):
                stderr = files.enter_context(tempfile.TemporaryFile())
                processes.append(_start(arguments, rank, number, port, stderr))
            failed = _wait(processes)
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    process.popen.kill()
        cause = min(failed, key=_cause) if failed else processes[0]
        # What else goes wrong when all stop at once means nothing.
        is_stopped = failed and was_interrupted() and _cause(cause) != _USERS_ERROR
        return INTERRUPTED if is_stopped else cause.report()


@dataclass
class _Process:
    """One of the processes, and the file that its stderr goes to."""

    rank: int
    popen: subprocess.Popen[bytes]
    stderr: IO[bytes]
    was_stopped: bool = False
    """Whether it had been stopped for too long, and was ended for that."""
    is_told_to_end: bool = False
    """Whether it was ended because another one had failed."""

    def is_stopped(self) -> bool:
        """Whether it is stopped now, as by SIGSTOP."""
        try:
            return bool(psutil.Process(self.popen.pid).status() == psutil.STATUS_STOPPED)
        except psutil.Error:
            return False

    def report(self) -> int:
        """Repeat what it wrote to stderr; returns its exit code as a shell gives it."""
        self.stderr.seek(0)
        # It wrote as this process's own terminal reads; a notebook's stderr stands in for that one.
        encoding = getattr(sys.__stderr__, "encoding", None) or "utf-8"
        sys.stderr.write(self.stderr.read().decode(encoding, errors="replace"))
        code: int = self.popen.returncode
        if code >= 0:
            return code
        what = f"was killed by {signal.Signals(-code).name}"
        hint = "if memory ran out, lower schedule.batch_size; go on with --resume and the folder"
        if self.was_stopped:
            what = f"was stopped, and ended after {_STOPPED_SECONDS:.0f} seconds in which the others waited for it"
            hint = "go on with --resume and the folder; to make a pause, stop the command itself by Ctrl-C"
        print(f"error: process {self.rank} {what}", file=sys.stderr)
        print(f"hint: {hint}", file=sys.stderr)
        return 128 - code


def _start(arguments: Sequence[str], rank: int, number: int, port: int, stderr: IO[bytes]) -> _Process:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in ranks.items()}, "MASTER_ADDR": "127.0.0.1"}
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // number, 1)))
    popen = subprocess.Popen(
        [sys.executable, "-m", "dsr1_tune", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=stderr,
        # A terminal sends Ctrl-C to all of its session; these get theirs from us, once.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    return _Process(rank, popen, stderr)


def _die_with_parent() -> None:
    """Killed with SIGKILL, this command must not leave processes behind that go on writing."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _passing_signals_to(processes: list[_Process]) -> Iterator[Callable[[], bool]]:
    """While it lasts, Ctrl-C and SIGTERM go to all processes, if they reach this thread; yields whether one came."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process in processes:
            if process.popen.poll() is None:
                process.popen.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if takes_signals() else ()
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[_Process]) -> list[_Process]:
    """Until all have ended; returns those that failed, the first to fail first."""
    failed: list[_Process] = []
    running, stops = list(processes), _Stops()
    deadline, stronger = 0.0, [signal.SIGKILL, signal.SIGTERM]
    while running:
        for process in [process for process in running if process.popen.poll() is not None]:
            running.remove(process)
            if process.popen.returncode != 0:
                failed.append(process)
                deadline = deadline or time.monotonic() + _PATIENCE_SECONDS
        if deadline and time.monotonic() > deadline and stronger:
            number = stronger.pop()
            deadline = time.monotonic() + _PATIENCE_SECONDS
            for process in running:
                process.is_told_to_end = True
                process.popen.send_signal(number)
        for process in stops.too_long(running):
            process.was_stopped = True
            process.popen.kill()
        time.sleep(_POLL_SECONDS)
    return failed


class _Stops:
    """Notices processes that are stopped while others run and wait for them."""

    def __init__(self) -> None:
        self._looked = self._since = time.monotonic()

    def too_long(self, running: Sequence[_Process]) -> list[_Process]:
        """Those that have been stopped for too long; none while all are, as a cluster pauses a whole job."""
        now = time.monotonic()
        away = now - self._looked
        if away < _LOOK_SECONDS:
            return []
        self._looked = now
        stopped = [process for process in running if process.is_stopped()]
        # Where this command was itself stopped meanwhile, as by Ctrl-Z, the time does not count.
        if not stopped or len(stopped) == len(running) or away > _STOPPED_SECONDS / 2:
            self._since = now
            return []
        return stopped if now - self._since > _STOPPED_SECONDS else []


def _cause(process: _Process) -> int:
    """Sorts first what made the others fail: an error that a user can mend, a death, then whatever came first."""
    if process.popen.returncode < 0 and not process.is_told_to_end:
        return _KILLED
    if process.popen.returncode != TuneError.exit_code:
        return _OTHER
    is_silent = process.stderr.seek(0, os.SEEK_END) == 0  # it ended because another one did
    return _CONSEQUENCE if is_silent else _USERS_ERROR
