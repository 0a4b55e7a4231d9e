"""Several processes started by one command: signals, deaths, and one error for all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from dsr1_tune.runs.distributed import launch
from dsr1_tune.runs.distributed.launch import processes_of, run_in_processes
from tests.runs.distributed.conftest import TIMEOUT, environment, log_of


def manifest_of(run: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest


def command(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    given = ["--data", str(data), "--model", str(base), "--out", str(out), "--set", "schedule.max_tokens=128"]
    few = [
        "--set",
        "base.dtype=float32",
        "--set",
        "schedule.batch_size=4",
        "--set",
        "samples=1",
        "--set",
        "sample_tokens=2",
    ]
    return [sys.executable, "-m", "dsr1_tune", "lora", *given, *few, *more]


def start_and_wait_for_a_step(base: Path, data: Path, run: Path) -> subprocess.Popen[bytes]:
    """Hundreds of steps: it cannot end by itself in time."""
    many = ["--processes", "2", "--epochs", "200", "--set", "schedule.save_steps=1000"]
    process = subprocess.Popen(command(base, data, run, *many), env=environment(), stdout=-1, stderr=-1)
    log, deadline = run / "train_log.jsonl", time.monotonic() + TIMEOUT
    while not log.exists() or not log.stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_launch_from_another_thread_leaves_signals_to_the_program() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_in_processes, ["--help"], 2).result() == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture
def two() -> Iterator[list[launch._Process]]:
    """Two processes that would run for a minute."""
    with ExitStack() as opened:
        processes = []
        for rank in range(2):
            popen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            opened.callback(popen.wait)
            opened.callback(popen.kill)
            stderr = opened.enter_context(tempfile.TemporaryFile())
            processes.append(launch._Process(rank, popen, stderr))
        yield processes


def test_launch_ends_all_when_one_stays_stopped(
    two: list[launch._Process], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(launch, "_STOPPED_SECONDS", 1.5)
    monkeypatch.setattr(launch, "_PATIENCE_SECONDS", 0.2)
    two[1].popen.send_signal(signal.SIGSTOP)
    failed = launch._wait(two)
    assert sorted(process.rank for process in failed) == [0, 1]
    cause = min(failed, key=launch._cause)
    assert cause.rank == 1
    assert cause.report() == 137
    assert "process 1 was stopped" in capsys.readouterr().err


def test_launch_lets_a_whole_job_pause(two: list[launch._Process], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(launch, "_STOPPED_SECONDS", 1.0)
    stops = launch._Stops()

    def watched(seconds: float) -> list[launch._Process]:
        end, found = time.monotonic() + seconds, list[launch._Process]()
        while time.monotonic() < end and not found:
            time.sleep(0.05)
            found = stops.too_long(two)
        return found

    for process in two:
        process.popen.send_signal(signal.SIGSTOP)
    assert not watched(1.5)  # all of them, as a cluster does it
    two[0].popen.send_signal(signal.SIGCONT)
    time.sleep(1.0)  # the command itself was stopped, as by Ctrl-Z
    assert not stops.too_long(two)
    assert watched(10.0) == [two[1]]


@pytest.mark.slow
def test_launch_ctrl_c_leaves_one_checkpoint_of_both_processes(
    tiny_base: Path, data_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_and_wait_for_a_step(tiny_base, data_file, run)
    try:
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert (process.returncode, errors.decode()) == (130, "")
    assert out.decode().count("Go on with:") == 1
    assert manifest_of(run)["status"] == "interrupted"
    (mark,) = run.glob("checkpoints/checkpoint-*/.whole")
    assert sorted(file.name for file in mark.parent.glob("rng_state*")) == ["rng_state_0.pth", "rng_state_1.pth"]
    assert processes_of(run) == 2  # as many will --resume start
    assert len(log_of(run)) == int(mark.parent.name.rpartition("-")[2])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_launch_killed_leaves_no_process_behind(tiny_base: Path, data_file: Path, tmp_path: Path) -> None:
    process = start_and_wait_for_a_step(tiny_base, data_file, tmp_path / "run")
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=TIMEOUT)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dying", "code", "said"),
    [
        ("raise", 2, "error: a fault of process 1"),
        ("kill", 137, "error: process 1 was killed by SIGKILL"),
    ],
)
def test_launch_gives_one_error_and_no_hang_for_a_failing_process(
    tiny_base: Path, data_file: Path, tmp_path: Path, dying: str, code: int, said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULT)  # python runs it in every process, before anything else
    line = command(tiny_base, data_file, tmp_path / "run", "--processes", "2")
    done = subprocess.run(
        line, env=environment(PYTHONPATH=str(tmp_path), DYING=dying), capture_output=True, timeout=TIMEOUT, text=True
    )
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


FAULT = """
import os, signal, threading, time
if os.environ.get("RANK") == "1":
    def fail(*args, **kwargs):
        if os.environ["DYING"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        from dsr1_tune.errors import ModelError
        raise ModelError("a fault of process 1", hint="none")
    def wait():
        import sys
        while True:
            module = sys.modules.get("dsr1_tune.runs.trainer.trainer")
            if hasattr(module, "ResumableTrainer"):
                module.ResumableTrainer.training_step = fail
                return
            time.sleep(0.01)
    threading.Thread(target=wait, daemon=True).start()
"""


@pytest.mark.slow
def test_launch_prints_an_error_of_all_processes_once(tmp_path: Path, data_file: Path) -> None:
    line = command(tmp_path / "nowhere", data_file, tmp_path / "run", "--processes", "2")
    done = subprocess.run(line, env=environment(), capture_output=True, timeout=TIMEOUT, text=True)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "there is no such folder" in done.stderr
    assert not (tmp_path / "run").exists()
