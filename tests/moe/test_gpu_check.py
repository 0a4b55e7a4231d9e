"""The script that looks at a GPU runs through without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.mark.slow
def test_gpu_check_runs_on_a_cpu() -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    lines = done.stdout.splitlines()
    assert sum("off from the CPU" in line for line in lines) == 8
    assert "a step over NF4, of one over bfloat16" in lines[-2]
