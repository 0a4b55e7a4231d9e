"""No process ever holds a whole trained weight in float32, and the steps are those that accelerate would take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lora_runs import log_of

WORKER = Path(__file__).with_name("sharded.py")


@pytest.mark.slow
def test_weights_become_float32_once_they_are_shared_out(tiny_base: Path, lora_data: Path, tmp_path: Path) -> None:
    schedule = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "max_tokens": 128}
    config = {"data": {"files": [str(lora_data)]}, "base": {"model": str(tiny_base), "dtype": "bfloat16"}}
    config |= {"schedule": schedule, "parallel": {"processes": 2, "strategy": "fsdp2"}, "samples": 0}
    runs = {order: config | {"out": str(tmp_path / order)} for order in ("first", "last")}
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path / "runs.json")],
            env={**os.environ, **given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [one.wait(400) for one in started] == [0, 0]
    largest = {order: [int((tmp_path / order / f"largest.{rank}").read_text()) for rank in range(2)] for order in runs}
    losses = {order: [(line["loss"], line["grad_norm"]) for line in log_of(tmp_path / order)] for order in runs}
    experts = 4 * 128 * 64  # gate_up of a layer's experts, the largest weight
    assert largest["last"] == [experts, experts] and max(largest["first"]) == experts // 2
    assert losses["first"] == losses["last"] and len(losses["first"]) == 2
