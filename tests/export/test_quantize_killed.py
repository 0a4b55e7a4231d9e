"""`quantize` broken off: kill -9, a Ctrl-C, a full disk. What has its name is whole, and a rerun completes."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.config.export import Quantize
from dsr1_tune.export import lineage, quantize
from dsr1_tune.models.weights import checkpoint

# Forks before any arithmetic, so that a try costs no imports; killed at any moment of what one run takes.
TEN = """
import io, os, random, signal, sys, time
from pathlib import Path
from rich.console import Console
import dsr1_tune.export.formats.encoding, dsr1_tune.models.weights.bnb_layout, dsr1_tune.models.weights.load_bnb
import transformers.models.qwen3_moe.modeling_qwen3_moe
from dsr1_tune.config.export import Quantize
from dsr1_tune.export import quantize

source, folder = Path(sys.argv[1]), Path(sys.argv[2])

def start(out):
    child = os.fork()
    if child == 0:
        try:
            quantize.run(source, out, Quantize(to="nf4"), Console(file=io.StringIO()))
        finally:
            os._exit(0 if (out / "lineage.json").is_file() else 1)
    return child

begin = time.perf_counter()
assert os.waitpid(start(folder / "whole"), 0)[1] == 0
took = time.perf_counter() - begin
random.seed(0)
killed = 0
for number in range(10):
    out = folder / f"out{number}"
    child = start(out)
    time.sleep(took * random.uniform(0.05, 1.0))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if out.exists():
        assert (out / "lineage.json").is_file() and (out / "config.json").is_file(), number
    else:
        assert os.waitpid(start(out), 0)[1] == 0, number
    left = [path.name for path in folder.iterdir() if path.name.startswith(f".out{number}.")]
    assert not [name for name in left if not name.endswith(".lock")], left
print(killed)
"""


@pytest.mark.slow
def test_quantize_killed_ten_times_leaves_all_or_nothing(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("qwen3_moe", moe_intermediate_size=256, num_experts=16)
    place = tmp_path / "outs"
    place.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TEN, str(source), str(place)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 6
    want = load_file(place / "whole" / "model.safetensors")
    for number in range(10):
        got = load_file(place / f"out{number}" / "model.safetensors")
        assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
        assert lineage.read(place / f"out{number}").stage("quantize")  # type: ignore[union-attr]


@pytest.mark.slow
def test_quantize_ended_by_ctrl_c_leaves_nothing(tiny_model: Any, tmp_path: Path) -> None:
    source = tiny_model("qwen3_moe", moe_intermediate_size=1024, num_experts=64)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "dsr1_tune", "quantize", str(source), "--to", "nf4", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out.*.part/*.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_quantize_on_a_full_disk_leaves_the_earlier_version_alone(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = Console(file=io.StringIO())
    earlier = quantize.run(tiny_base, tmp_path / "v1", Quantize(to="int8"), quiet)
    before = {path.name: path.read_bytes() for path in earlier.iterdir()}
    write, room = os.write, 20_000

    def full(file: int, data: Any) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(checkpoint.os, "write", full)
    with pytest.raises(OSError, match="No space left") as stopped:
        quantize.run(tiny_base, tmp_path / "v2", Quantize(to="nf4"), quiet)
    assert stopped.value.filename.endswith("model.safetensors")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    assert {path.name: path.read_bytes() for path in earlier.iterdir()} == before
    assert (quantize.run(tiny_base, tmp_path / "v2", Quantize(to="nf4"), quiet) / "lineage.json").is_file()
