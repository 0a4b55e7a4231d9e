"""Several processes started by one command: signals, deaths, and one error for all."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dsr1_tune.runs.distributed.launch import processes_of
from tests.runs.distributed.conftest import TIMEOUT, environment, log_of

WORKER = Path(__file__).with_name("two_processes.py")


def settings(base: Path, data: Path, out: Path, batch_size: int, **parallel: Any) -> dict[str, Any]:
    """Two epochs; 8 records a step in one process, or 4 in each of two."""
    schedule = {"epochs": 2, "learning_rate": 0.01, "batch_size": batch_size, "max_tokens": 128, "save_steps": 100}
    return {
        "data": {"files": [str(data)]},
        "base": {"model": str(base), "dtype": "float32"},
        "schedule": schedule,
        "parallel": parallel,
        "out": str(out),
        "samples": 1,
        "sample_tokens": 2,
    }


def in_processes(number: int, runs: list[dict[str, Any]], place: Path) -> list[list[dict[str, Any]]]:
    """Do the runs in so many processes; what each process tells of each run."""
    place.mkdir(parents=True, exist_ok=True)
    file = place / "runs.json"
    file.write_text(json.dumps(runs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
        for rank in range(number)
    ]
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(file)],
            env=environment(MASTER_PORT=port, PATIENCE=str(TIMEOUT - 20), **rank),
            stderr=-1,
        )
        for rank in ranks
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT)[1].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * number, "\n".join(said)
    return [
        [json.loads(Path(f"{file}.{run}.{rank}").read_text()) for rank in range(number)] for run in range(len(runs))
    ]


def manifest_of(run: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest


@dataclass
class Done:
    """The runs that the tests look at, and what each process told of them."""

    place: Path
    told: dict[str, list[dict[str, Any]]]

    def __getitem__(self, name: str) -> Path:
        return self.place / name


Plan = Callable[..., dict[str, Any]]


def done_by(tiny_base: Path, data_file: Path, place: Path, two: Callable[[Plan], dict[str, Any]], *alone: str) -> Done:
    """One process's runs of the methods `alone`, by their names, and the runs that `two` plans for two processes."""

    def plan(name: str, command: str = "lora", batch_size: int = 4, **parallel: Any) -> dict[str, Any]:
        return {"command": command, "config": settings(tiny_base, data_file, place / name, batch_size, **parallel)}

    runs = two(plan)
    in_processes(1, [plan(method, method, batch_size=8) for method in alone], place / "alone")
    told = in_processes(2, list(runs.values()), place / "together")
    return Done(place, dict(zip(runs, told, strict=True)))


@pytest.fixture(scope="module")
def done(tiny_base: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """LoRA and QLoRA by one process, and by two in every way."""
    place = tmp_path_factory.mktemp("runs")

    def two(plan: Plan) -> dict[str, Any]:
        return {
            "ddp": plan("ddp"),
            "fsdp2": plan("fsdp2", strategy="fsdp2"),
            # Only the second process is interrupted, in its third step.
            "stopped": plan("stopped") | {"interrupt": [1, 3]},
            "resumed": plan("stopped") | {"resume": str(place / "stopped")},
            "fsdp2_stopped": plan("fsdp2_stopped", strategy="fsdp2") | {"interrupt": [1, 3]},
            "fsdp2_resumed": plan("fsdp2_stopped") | {"resume": str(place / "fsdp2_stopped")},
            "starved": plan("starved") | {"starve": 1},
            "quantized": plan("quantized", "qlora"),
        }

    return done_by(tiny_base, data_file, place, two, "lora", "qlora")


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


@pytest.mark.parametrize(
    ("dying", "code", "said"),
    [
        ("raise", 2, "error: a fault of process 1"),
        pytest.param("kill", 137, "error: process 1 was killed by SIGKILL", marks=pytest.mark.slow),
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


def test_launch_prints_an_error_of_all_processes_once(tmp_path: Path, data_file: Path) -> None:
    line = command(tmp_path / "nowhere", data_file, tmp_path / "run", "--processes", "2")
    done = subprocess.run(line, env=environment(), capture_output=True, timeout=TIMEOUT, text=True)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "there is no such folder" in done.stderr
    assert not (tmp_path / "run").exists()
