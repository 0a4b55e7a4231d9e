from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.align.conftest import Settings
from tests.conftest import TinyModel

WORKER = Path(__file__).with_name("ppo_process.py")


def in_processes(number: int, tree: dict[str, Any], file: Path, worker: Path = WORKER) -> list[float]:
    """Run it in so many processes; the sum of the trained weights in each."""
    file.write_text(json.dumps(tree))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(number):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)} if number > 1 else {}
        command = [sys.executable, str(worker), str(file), str(rank)]
        started.append(subprocess.Popen(command, env={**shared, **own}, stdout=-3, stderr=-1))
    said = [process.communicate(timeout=300)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * number, "\n".join(said)
    return [json.loads(Path(f"{file}.{rank}").read_text())["sum"] for rank in range(number)]


FAILS = """\
def letters(answer):
    if sum(map(ord, answer)) % 3 == 0:
        raise ValueError("no idea")
    return sum(character.isalpha() for character in answer) / max(len(answer), 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["every answer is scored", "some are not"])
def test_ppo_in_two_processes_learns_what_one_does(
    tiny_model: TinyModel, settings: Settings, tmp_path: Path, fails: bool
) -> None:
    base = tiny_model("qwen3_moe")
    if fails:
        (tmp_path / "own.py").write_text(FAILS)
    # A minibatch is then the same answers, whoever has them: all of an update.
    ppo = {"answers": 8, "minibatches": 1, "whiten_rewards": True, "kl_target": 0.01}
    common = {"ppo": ppo, "data": {"eval_share": 0.1}, "schedule": {"batch_size": 4}}
    one = in_processes(1, settings(base, out="one", **common), tmp_path / "one.json")
    both = in_processes(2, settings(base, out="two", **common, parallel={"processes": 2}), tmp_path / "two.json")
    assert both[0] == both[1], "the processes have the same weights"
    assert both[0] == pytest.approx(one[0], rel=1e-5)
    ours, theirs = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("two", "one"))
    for name, weight in ours.items():
        assert_close(weight, theirs[name], rtol=1e-3, atol=1e-4)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "train_log.jsonl").read_text().splitlines()]
        for run in ("two", "one")
    ]
    names = [
        "reward/mean",
        "reward/task/letters",
        "reward/failed",
        "policy/kl",
        "policy/kl_per_answer",
        "policy/entropy",
    ]
    assert any(line["reward/failed"] for line in logs[0]) == fails
    for told, known in zip(*logs, strict=True):
        for name in (*names, "policy/entropy", "answer/tokens", "grad_norm"):
            assert told[name] == pytest.approx(known[name], rel=1e-3, abs=1e-5), name
