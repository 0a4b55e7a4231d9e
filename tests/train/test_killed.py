"""`kill -9` at any moment: what was written whole is gone on from, what was not is not mistaken for it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsr1_tune.runs.folder import FINISHED, RunFolder

ROWS = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]
SAVE_STEPS = 2
TIMEOUT = 300


def start(*arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dsr1_tune", "lora", *arguments], env=environment, stdout=-3, stderr=-1
    )


def begin(base: Path, out: Path) -> list[str]:
    """20 short steps with a checkpoint after every second."""
    data = out.with_suffix(".json")
    data.write_text(json.dumps(ROWS))
    sets = [
        "epochs=5",
        "batch_size=7",
        f"save_steps={SAVE_STEPS}",
        "learning_rate=0.01",
        "gradient_checkpointing=false",
    ]
    few = ["--set", "samples=1", "--set", "sample_tokens=2"]
    schedule = [word for one in sets for word in ("--set", f"schedule.{one}")]
    return ["--data", str(data), "--model", str(base), "--out", str(out), *schedule, *few]


def finish(*arguments: str) -> None:
    process = start(*arguments)
    try:
        errors = process.communicate(timeout=TIMEOUT)[1].decode()
    finally:
        process.kill()
    assert process.returncode == 0, errors


def result_of(run: Path) -> tuple[float, list[float]]:
    after: float = json.loads((run / "eval.json").read_text())["after"]["loss"]
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return after, [line["loss"] for line in lines]


def check_what_is_there(run: Path) -> None:
    """Whatever stands under its own name can be read to its end."""
    for file in (run / "manifest.json", run / "eval.json"):
        if file.exists():
            json.loads(file.read_text())
    if (run / "adapter").exists():
        assert load_file(run / "adapter" / "adapter_model.safetensors")
        json.loads((run / "adapter" / "adapter_config.json").read_text())
        assert (run / "adapter" / "tokenizer.json").stat().st_size
    checkpoint = RunFolder(run).latest_checkpoint()
    if checkpoint:
        assert load_file(checkpoint / "adapter_model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.load(checkpoint / name, weights_only=False)
        json.loads((checkpoint / "trainer_state.json").read_text())


def steps_done(run: Path) -> int:
    log = run / "train_log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_somewhere(process: subprocess.Popen[bytes], run: Path, chance: random.Random, moment: str) -> bool:
    """SIGKILL at a random instant: `any` of its life, while it `trains`, or while files of a `checkpoint` or of the
    `output` are being written; False if it had ended before.
    """
    before, deadline = steps_done(run), time.monotonic() + TIMEOUT

    def has_come() -> bool:
        if moment == "train":
            return steps_done(run) != before
        if moment == "checkpoint":
            folders = list(run.glob("checkpoints/checkpoint-*"))
            return any(not (folder / ".whole").exists() and any(folder.iterdir()) for folder in folders)
        if moment == "output":
            return any(run.glob(".adapter.*.part")) or (run / "adapter").exists()
        return True

    while not has_come() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    longest = {"any": 8.0, "train": 1.0, "checkpoint": 0.02, "output": 0.05}[moment]
    time.sleep(chance.uniform(0, longest))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def unbroken(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, list[float]]:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    finish(*begin(tiny_base, run))
    return result_of(run)


def survive(base: Path, run: Path, moments: list[str], seed: int) -> int:
    """Start, kill at each of the moments in turn, going on each time, and finish; returns how many kills hit."""
    chance = random.Random(seed)
    num_kills = 0
    arguments = begin(base, run)
    for moment in moments:
        num_kills += kill_somewhere(start(*arguments), run, chance, moment)
        check_what_is_there(run)
        if (run / "manifest.json").exists():
            arguments = ["--resume", str(run)]
            if RunFolder(run).manifest()["status"] == FINISHED:
                return num_kills
    finish(*arguments)
    return num_kills


@pytest.mark.slow
def test_run_killed_at_a_checkpoint_ends_as_unbroken(tiny_base: Path, tmp_path: Path, unbroken: Any) -> None:
    run = tmp_path / "run"
    assert survive(tiny_base, run, ["checkpoint"], seed=0) == 1
    check_as_unbroken(run, unbroken)


@pytest.mark.slow
def test_run_killed_eight_times_ends_as_unbroken(tiny_base: Path, tmp_path: Path, unbroken: Any) -> None:
    moments = ["any", "train", "checkpoint", "checkpoint", "output"]
    num_kills = number = 0
    while num_kills < 8:
        number += 1
        assert number <= 6, "most kills came too late"
        run = tmp_path / f"run{number}"
        num_kills += survive(tiny_base, run, moments, seed=number)
        check_as_unbroken(run, unbroken)


def check_as_unbroken(run: Path, unbroken: tuple[float, list[float]]) -> None:
    after, losses = result_of(run)
    assert RunFolder(run).manifest()["status"] == FINISHED
    assert len(losses) == len(unbroken[1]) == 20
    assert losses == pytest.approx(unbroken[1], abs=1e-5)
    assert after == pytest.approx(unbroken[0], abs=1e-5)
    check_what_is_there(run)
