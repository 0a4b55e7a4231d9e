from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler

from dsr1_tune.align import ppo
from dsr1_tune.align.online.generate import Answers
from dsr1_tune.config import PpoRun
from dsr1_tune.errors import RunError, TuneError
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.arguments import to_arguments
from dsr1_tune.runs.trainer.callbacks import WholeCheckpoints
from tests.align.online.conftest import PpoConfig
from tests.conftest import TinyModel
from tests.export.conftest import sums, tiny_run  # noqa: F401
from tests.lora_runs import in_a_thread


def test_ppo_run_logs_its_updates_and_saves_an_adapter(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console
) -> None:
    # More minibatches than schedule.batch_size has portions for.
    changes: dict[str, Any] = {"ppo": {"kl_target": 0.01, "minibatches": 4}, "schedule": {"batch_size": 8}}
    folder = ppo.run(ppo_run(tiny_model("qwen3_moe"), **changes), console=quiet)
    lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    first, last = lines[0], lines[-1]
    for name in ("policy/entropy", "value/explained_variance", "answer/tokens", "experts/entropy_mean", "grad_norm"):
        assert name in last
    assert {"reward/form", "reward/task", "reward/task/letters", "reward/form/length"} <= set(last)
    assert first["policy/kl"] == 0.0 and last["policy/kl"] != 0.0
    assert last["kl/beta"] != first["kl/beta"]
    assert folder.manifest()["status"] == "finished"
    assert (folder.adapter / "adapter_model.safetensors").is_file()
    assert folder.evaluation()["after"]["num_prompts"] == 2


def test_ppo_runs_in_a_thread(tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console) -> None:
    config = ppo_run(tiny_model("qwen3_moe"), schedule={"max_steps": 2})
    assert in_a_thread(lambda: ppo.run(config, console=quiet)).manifest()["status"] == "finished"


@pytest.mark.parametrize("value", ["shared", pytest.param("own", marks=pytest.mark.slow)])
def test_ppo_resumed_run_ends_as_an_unbroken_one(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    base = tiny_model("qwen3_moe")
    changes: dict[str, Any] = {"ppo": {"value": value, "kl_target": 0.01, "routing_replay": value == "own"}}
    unbroken = ppo.run(ppo_run(base, out="unbroken", **changes), console=quiet)
    answer = ppo._answer

    def interrupted(session: Any, policy: Any, asked: Any, step: int) -> Answers:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return answer(session, policy, asked, step)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "_answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ppo.run(ppo_run(base, out="broken", **changes), console=quiet)
    broken = unbroken.path.with_name("broken")
    assert json.loads((broken / "manifest.json").read_text())["status"] == "interrupted"
    resumed = ppo.run(PpoRun(), resume=broken, console=quiet)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (resumed, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    timed = ("seconds", "tokens_per_second", "num_tokens", "memory/rss_gib", "epoch")
    logs = [
        [{k: v for k, v in json.loads(line).items() if k not in timed and not k.startswith("experts/")} for line in
         run.log_file.read_text().splitlines()]
        for run in (resumed, unbroken)
    ]  # fmt: skip
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": "nowhere.yaml"}, "nowhere.yaml"),
        ({"rollout": {"max_new_tokens": 128}}, "of 20 records none can be trained on"),
        ({"schedule": {"max_tokens": 600}, "rollout": {"max_new_tokens": 500}}, "longer than its context of 512"),
        ({"ppo": {"routing_replay": True}}, "routing_replay"),
        ({"schedule": {"gradient_accumulation_steps": 2}}, "schedule.gradient_accumulation_steps"),
        ({"start": {"run": "/nowhere"}}, "/nowhere: holds no adapter"),
    ],
)
def test_ppo_refuses_what_cannot_work_before_weights_are_loaded(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, changes: dict[str, Any], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("dsr1_tune.runs.session.load_located", lambda *args, **given: pytest.fail("weights are read"))
    base = tiny_model("llama" if said == "routing_replay" else "qwen3_moe")
    with pytest.raises((TuneError, ValidationError), match=said):
        ppo.run(ppo_run(base, **changes), console=quiet)
    assert not (tmp_path / "run").exists()


def test_ppo_result_does_not_depend_on_the_batch_size(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console
) -> None:
    base = tiny_model("qwen3_moe")
    runs = [
        ppo.run(ppo_run(base, out=f"by{size}", schedule={"batch_size": size, "max_steps": 2}), console=quiet)
        for size in (1, 8)
    ]
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in runs)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-3, atol=2e-4)


def test_ppo_counts_failed_rewards_or_ends_the_run(
    tiny_model: TinyModel, ppo_run: PpoConfig, quiet: Console, tmp_path: Path
) -> None:
    base = tiny_model("qwen3_moe")
    config = ppo_run(base)
    (tmp_path / "own.py").write_text(
        "def letters(question, answer, expected=None, row=None):\n"
        "    if question.endswith('7'):\n        raise ValueError('no sevens')\n"
        "    return float('nan') if question.endswith('8') else 1.0\n"
    )
    folder = ppo.run(config, console=quiet)
    lines = [json.loads(line) for line in (folder.path / "reward_errors.jsonl").read_text().splitlines()]
    assert folder.manifest()["metrics"]["reward_errors"] == {"task/letters": len(lines)}
    assert {line["question"].split()[-1] for line in lines} <= {"7", "17", "8", "18"} and len(lines) > 2
    assert any("no sevens" in line["error"] for line in lines)
    log = [json.loads(line) for line in (folder.path / "train_log.jsonl").read_text().splitlines()]
    assert sum(line["reward/failed"] for line in log) == sum("step" in line for line in lines) > 0
    assert all(line["reward/task/letters"] == 1 for line in log), "answers that could not be scored count in no mean"
    stopped = ppo_run(base, out="stopped", on_reward_error="stop", data={"eval_share": 0.05})
    with pytest.raises(RunError, match="letters failed"):
        ppo.run(stopped, console=quiet)


def test_ppo_own_value_trunk_leaves_trained_routers_as_they_are(
    tiny_run: Any,  # noqa: F811
    ppo_run: PpoConfig,
    quiet: Console,
) -> None:
    run = tiny_run("qwen3_moe", "lora", router={"mode": "train"})
    changes: dict[str, Any] = {"ppo": {"value": "own"}, "schedule": {"max_steps": 1}}
    folder = ppo.run(ppo_run(run.path, **changes), console=quiet)
    old, new = (load_file(one.adapter / "adapter_model.safetensors") for one in (run, folder))
    routers = [name for name in old if ".lora_" not in name]
    assert routers and all(torch.equal(old[name], new[name]) for name in routers)


# --- steps ------------------------------------------------------------------------------------------------------------


class Notes(TrainerCallback):
    """Notes what it is called for; can ask for an early end."""

    def __init__(self, stop_at: int = 0) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.stop_at = stop_at

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logged.append((state.global_step, logs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.stop_at:
            control.should_save = control.should_training_stop = True


def steps_in(folder: RunFolder, notes: Notes, num_steps: int, save_steps: int) -> ppo.Steps:
    """Steps of a run in `folder`; nothing is trained."""
    folder.begin(PpoRun(), "ppo")
    layer = torch.nn.Linear(1, 1)
    handler = CallbackHandler([notes, WholeCheckpoints(folder)], layer, None, None, None)
    args = to_arguments(PpoRun(), folder, torch.float32)
    watcher: Any = None
    state = TrainerState(max_steps=num_steps, save_steps=save_steps)
    return ppo.Steps(handler, args, state, TrainerControl(), watcher, folder)


def save(folder: Path) -> None:
    (folder / "weights").write_text("saved")


def names_in(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def test_steps_log_each_step_and_keep_the_last_two_checkpoints(tmp_path: Path) -> None:
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    steps = steps_in(folder, notes, num_steps=7, save_steps=2)
    for step in steps.remaining():
        steps.end_step({"loss": 1.0 / step}, epoch=step / 7, save=save)
    assert notes.logged == [(step, {"loss": 1.0 / step}) for step in range(1, 8)]
    assert names_in(folder) == ["checkpoint-6", "checkpoint-7"]
    assert all(folder.is_whole(step) for step in (6, 7)) and steps.state.epoch == 1.0


def test_steps_end_early_with_a_checkpoint_where_a_callback_asks(tmp_path: Path) -> None:
    folder, notes = RunFolder(tmp_path / "run"), Notes(stop_at=3)
    steps = steps_in(folder, notes, num_steps=7, save_steps=100)
    for step in steps.remaining():
        steps.end_step({"loss": 0.0}, epoch=step / 7, save=save)
    assert steps.state.global_step == 3 and names_in(folder) == ["checkpoint-3"]


def test_steps_do_not_count_half_written_checkpoints_among_those_kept(tmp_path: Path) -> None:
    folder, notes = RunFolder(tmp_path / "run"), Notes()
    steps = steps_in(folder, notes, num_steps=2, save_steps=1)
    (folder.checkpoints / "checkpoint-9").mkdir(parents=True)
    for step in steps.remaining():
        steps.end_step({"loss": 0.0}, epoch=step / 2, save=save)
    assert names_in(folder) == ["checkpoint-1", "checkpoint-2"]
    (folder.checkpoints / "checkpoint-2" / "weights").unlink()
    steps.save(save)
    assert not (folder.checkpoints / "checkpoint-2" / "weights").exists(), "there is one of this step already"
