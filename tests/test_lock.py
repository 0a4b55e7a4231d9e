"""One at a time: real processes that hold a lock, die with it, and start all at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dsr1_tune import lock
from dsr1_tune.errors import RunError
from dsr1_tune.lock import Holder, holder_of, locked, locked_in_turn

HOLD = """
import sys, time
from pathlib import Path
from dsr1_tune import lock
if sys.argv[2] == "no flock":
    lock.fcntl = None
with lock.locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["flock", "no flock"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on most disks, and as where there is no flock: what is written decides."""
    if request.param == "no flock":
        monkeypatch.setattr(lock, "fcntl", None)
    return str(request.param)


@contextlib.contextmanager
def holding(file: Path, mode: str = "flock") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its stdin is closed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file), mode], text=True, stdin=-1, stdout=-1)
    assert process.stdout and process.stdin
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def write(file: Path, holder: Holder) -> None:
    file.write_text(json.dumps(asdict(holder)))


def test_a_lock_that_another_process_holds_is_refused_with_its_number_and_host(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "new" / ".lock"
    with holding(file, mode) as process, pytest.raises(RunError) as caught, locked(file, "run: is busy", "wait"):
        pass
    assert caught.value.message.startswith(f"run: is busy: process {process.pid} on {socket.gethostname()}, since ")
    assert (caught.value.hint, caught.value.exit_code) == ("wait", 2)
    with locked(file, "busy"):
        assert holder_of(file) == replace(Holder.here(), since=holder_of(file).since)  # type: ignore[union-attr]
    assert not file.exists()


def test_a_lock_is_not_taken_twice_in_one_process(tmp_path: Path, mode: str) -> None:
    with locked(tmp_path / "a", "busy"):
        for _ in range(2):
            with pytest.raises(RunError, match=rf"busy: process {os.getpid()} on "), locked(tmp_path / "a", "busy"):
                pass
        with locked(tmp_path / "b", "busy"):
            pass


def test_a_killed_process_leaves_the_lock_to_the_next(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ".lock"
    with holding(file, mode) as process:
        process.kill()
        process.wait()
        left = holder_of(file)
        assert left and left.pid == process.pid
        with locked(file, "busy"):
            assert holder_of(file) != left


def test_a_child_of_a_killed_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    fork = HOLD.replace("print", "import os\n    if os.fork():\n        time.sleep(60)\n    print")  # the child tells
    file = tmp_path / ".lock"
    process = subprocess.Popen(
        [sys.executable, "-c", fork, str(file), "flock"], text=True, stdin=-1, stdout=-1, start_new_session=True
    )
    assert process.stdout and process.stdin
    try:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        os.killpg(process.pid, 0)  # it lives on
        with locked(file, "busy"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        process.stdout.close()


def test_a_lock_of_another_machine_is_believed(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ".lock"
    write(file, replace(Holder.here(), host="node7", boot="another", pid=41))
    with pytest.raises(RunError, match=r"process 41 on node7, since .* cannot be seen") as caught, locked(file, "busy"):
        pass
    assert f"if that process or machine is gone, remove {file}" in caught.value.hint
    file.unlink()
    with locked(file, "busy"):
        pass


@pytest.mark.parametrize("changes", [{"host": "a1b2c3"}, {"boot": "before"}], ids=["container", "restarted"])
def test_a_lock_left_on_this_machine_is_taken_over(tmp_path: Path, changes: dict[str, str]) -> None:
    """In a container that has another name, and before the machine was started anew."""
    write(tmp_path / ".lock", replace(Holder.here(), **changes))  # type: ignore[arg-type]
    with locked(tmp_path / ".lock", "busy"):
        pass


@pytest.mark.parametrize("changes", [{"began": 1.0}, {"boot": "before"}, {"pid": 2**22 + 1}], ids=str)
def test_without_flock_a_number_that_another_process_has_by_now_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    write(tmp_path / ".lock", replace(Holder.here(), **changes))  # type: ignore[arg-type]
    with locked(tmp_path / ".lock", "busy"):
        pass
    write(tmp_path / ".lock", Holder.here())
    with pytest.raises(RunError, match=f"process {os.getpid()} on "), locked(tmp_path / ".lock", "busy"):
        pass


def test_a_file_that_names_nobody_is_taken(tmp_path: Path, mode: str) -> None:
    (tmp_path / ".lock").write_text('{"pid": 5}')
    with locked(tmp_path / ".lock", "busy"):
        pass


def test_of_many_at_once_one_has_the_lock(tmp_path: Path, mode: str) -> None:
    """Sixteen threads, eight times; each that has it makes and removes a file that none may find there."""
    file, mark, wins, clashes = tmp_path / "x" / ".lock", tmp_path / "mark", [0], [0]
    for _ in range(8):
        gate = threading.Barrier(16)

        def race(gate: threading.Barrier = gate) -> None:
            gate.wait()
            with contextlib.suppress(RunError), locked(file, "busy"):
                try:
                    mark.touch(exist_ok=False)
                except FileExistsError:
                    clashes[0] += 1
                time.sleep(0.001)
                mark.unlink()
                wins[0] += 1

        threads = [threading.Thread(target=race) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert clashes == [0] and wins[0] >= 8
    assert not file.exists()


def test_what_is_built_for_all_is_waited_for(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ".lock"
    with holding(file, mode) as process:
        assert process.stdin
        threading.Timer(0.5, process.stdin.close).start()
        begin = time.monotonic()
        with locked_in_turn(file):
            assert time.monotonic() - begin > 0.4


def test_what_another_machine_left_long_ago_is_not_waited_for(tmp_path: Path, mode: str) -> None:
    away = replace(Holder.here(), host="node7", boot="another", since=time.time() - 3600)
    write(tmp_path / ".lock", away)
    with locked_in_turn(tmp_path / ".lock"):
        pass


def test_a_lock_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left.*new/\.lock"), locked(tmp_path / "new" / ".lock", "busy"):
        pass
    assert not (tmp_path / "new" / ".lock").exists()
