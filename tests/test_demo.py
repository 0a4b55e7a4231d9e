"""The main job as `make demo` runs it, cut short: real text, the embedded base, and a loss that falls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsr1_tune.models import embedded

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_quarter_of_the_demo_lowers_the_held_out_loss_by_a_tenth(tmp_path: Path) -> None:
    if embedded.find() is None and embedded.wheel_file() is None:
        pytest.skip(f"needs the embedded base: {embedded.MEND}")
    settings = ["schedule.max_steps=12", "samples=1", "sample_tokens=10"]
    command = [sys.executable, "-m", "dsr1_tune", "lora", "--config", "examples/medical/lora.yaml"]
    command += ["--out", str(tmp_path / "run"), *(part for name in settings for part in ("--set", name))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    metrics = manifest["metrics"]
    assert manifest["status"] == "finished"
    assert metrics["loss_after"] <= 0.9 * metrics["loss_before"]
    assert metrics["reloaded_loss"] == pytest.approx(metrics["loss_after"], abs=1e-3)
    trained = {line["part"] for line in metrics["coverage"] if line["num_trained"]}
    assert trained == {"attention", "dense_ffn", "shared_experts", "routed_experts"}
