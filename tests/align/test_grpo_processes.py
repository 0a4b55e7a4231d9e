"""GRPO in two processes, which share groups: answers without a score are left out in both alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.align.conftest import Settings
from tests.align.test_ppo_processes import FAILS, in_processes
from tests.conftest import TinyModel

WORKER = Path(__file__).with_name("grpo_process.py")


@pytest.mark.slow
def test_grpo_in_two_processes_leaves_out_what_one_does(
    tiny_model: TinyModel, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(FAILS)
    runs = {}
    for name, processes in (("one", 1), ("two", 2)):
        tree = settings(
            tiny_model("qwen3_moe"),
            out=name,
            data={"eval_share": 0.1},
            schedule={"batch_size": 4, "gradient_accumulation_steps": 2 // processes, "max_steps": 3},
            parallel={"processes": processes},
        )
        del tree["ppo"]
        # Every group of eight answers is spread over both processes.
        tree["grpo"] = {"num_generations": 8, "beta": 0.05, "loss_type": "dapo"}
        sums = in_processes(processes, tree, tmp_path / f"{name}.json", WORKER)
        assert len(set(sums)) == 1, "the processes have the same weights"
        log = (tmp_path / name / "train_log.jsonl").read_text().splitlines()
        runs[name] = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"), list(map(json.loads, log))
    (one, known), (two, told) = runs["one"], runs["two"]
    assert any(line["reward/failed"] for line in told)
    for ours, theirs in zip(told, known, strict=True):
        for name in ("reward/mean", "reward/std", "reward/failed", "reward/task/letters", "loss", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    for name, weight in two.items():
        assert_close(weight, one[name], rtol=1e-3, atol=1e-4)
