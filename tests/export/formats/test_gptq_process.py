"""The process that calibrates: its job file, and its end with its parent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dsr1_tune.export.formats.gptq_process import Job


def test_job_is_read_as_it_was_saved(tmp_path: Path) -> None:
    job = Job("model", "out", ((1, 2), (3,)), 64, ("model.layers.0.self_attn.o_proj",))
    job.save(tmp_path / "job.json")
    assert Job.of(tmp_path / "job.json") == job


@pytest.mark.slow
def test_gptq_process_ends_when_its_parent_is_killed() -> None:
    child = (
        "from dsr1_tune.export.formats import gptq_process as p; "
        "p._end_with_parent(); print(1, flush=True); p.time.sleep(99)"
    )
    parent = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid); p.wait()"
    with subprocess.Popen([sys.executable, "-uc", parent], stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        process = psutil.Process(int(ours.stdout.readline()))
        assert ours.stdout.readline() == "1\n"
        ours.kill()
    process.wait(timeout=20)
