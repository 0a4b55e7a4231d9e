"""kill -9, a full disk and damaged files: what is there is whole, what is not is not taken for it."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.config import Quantize
from dsr1_tune.errors import ModelError
from dsr1_tune.export import merge, quantize
from dsr1_tune.models.weights import checkpoint

from .conftest import TinyRun


@pytest.mark.slow
def test_merge_killed_ten_times_leaves_all_or_nothing(tiny_run: TinyRun, tmp_path: Path) -> None:
    script = Path(__file__).with_name("merge_killed.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tiny_run("qwen3_moe").path), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "unfinished" in done.stdout


def test_merge_on_a_full_disk_leaves_nothing(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run("qwen3_moe").path
    writes = 0

    def full(handle: int, data: Any) -> int:
        nonlocal writes
        writes += 1
        if writes > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    write = os.write
    monkeypatch.setattr(checkpoint.os, "write", full)
    with pytest.raises(OSError, match="No space left") as error:
        merge.run(run, tmp_path / "out", console=quiet())
    assert str(error.value.filename).endswith(".safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["merge", "quantize"])
def test_merge_and_quantize_refuse_a_damaged_shard_by_name(tiny_run: TinyRun, tmp_path: Path, verb: str) -> None:
    run = tiny_run("qwen3_moe")
    shutil.copytree(run.path.parent, tmp_path / "all")
    weights = tmp_path / "all" / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    manifest = tmp_path / "all" / "run" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(run.path.parent), str(tmp_path / "all")))
    with pytest.raises(ModelError, match=r"all/base/model\.safetensors: is damaged"):
        export(verb, tmp_path / "all" / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def export(verb: str, run: Path, out: Path) -> None:
    if verb == "merge":
        merge.run(run, out, console=quiet())
    else:
        quantize.run(run, out, Quantize(to="fp8"), quiet())


def quiet() -> Console:
    return Console(file=io.StringIO())
