"""Tests of `reward` and `score`: a preference is learned, kept, told from other models, and applied to files."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.align import reward
from dsr1_tune.align.preference import calibration
from dsr1_tune.align.preference.encode import encode_pairs
from dsr1_tune.align.rewards.scoring import score_conversations
from dsr1_tune.config import LoraRun, RewardRun
from dsr1_tune.config.load import load_config
from dsr1_tune.data.prepare import prepare
from dsr1_tune.data.record import Message, Preference
from dsr1_tune.errors import ConfigError, ModelError, RunError
from dsr1_tune.export.weights.source import find_trained
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.reward_model import load_scalar
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.callbacks import read_log
from dsr1_tune.train import lora
from tests.align.conftest import QUIET, reward_config


def test_reward_model_learns_what_is_preferred(scorer: RunFolder) -> None:
    told = scorer.evaluation()
    before, after = told["before"], told["after"]
    assert after["accuracy"] > 0.9 > before["accuracy"]
    assert after["length_only"] == 0.5
    assert after["num_pairs"] == len(after["margins"]) == sum(one["num_pairs"] for one in after["bins"]) == 20
    assert set(after["differs"]) == {"safety", "tone"}
    assert told["answers_after"] == []
    metrics = scorer.manifest()["metrics"]
    assert metrics["accuracy_after"] == after["accuracy"]
    assert metrics["reloaded_loss"] == pytest.approx(after["loss"], abs=1e-3)
    assert (scorer.path / "calibration.png").stat().st_size > 5_000
    line = json.loads(scorer.log_file.read_text().splitlines()[-1])
    assert line["accuracy"] > 0.9
    assert line["grad_norm/other"] > 0  # the head's


@pytest.mark.parametrize("place", ["", "adapter"])
def test_reward_model_that_was_saved_scores_alike(scorer: RunFolder, zebras: Path, place: str) -> None:
    model = load_scalar(scorer.path / place)
    config = reward_config(zebras, Path(), Path())
    data = encode_pairs(prepare(config.data, Preference), model.tokenizer, config)
    found = reward.score_pairs(model, data.held_out)
    after = calibration.PairScores.from_json(scorer.evaluation()["after"])
    assert found.loss == pytest.approx(after.loss, abs=1e-4)
    assert found.margins == pytest.approx(after.margins, abs=1e-3)


def test_reward_model_is_not_taken_for_a_model_that_answers(scorer: RunFolder, zebras: Path, tmp_path: Path) -> None:
    wanted = "is a reward model: it scores answers"
    for place in (scorer.path, scorer.adapter):
        for use in (load_with_adapter, find_trained):
            with pytest.raises(ModelError, match=wanted) as told:
                use(place)
            assert "dsr1-tune score" in told.value.hint
    with pytest.raises(ModelError, match=wanted):
        reward.run(reward_config(zebras, scorer.path, tmp_path / "run"), console=QUIET)
    row = tmp_path / "rows.json"
    row.write_text(json.dumps([{"question": "what is this?", "answer": "it is that"}]))
    config = LoraRun.model_validate({"data": {"files": [str(row)]}, "base": {"model": str(scorer.path)}})
    with pytest.raises(ModelError, match=wanted):
        lora.run(config, console=QUIET)
    with pytest.raises(RunError, match="this run is finished") as finished:
        reward.run(RewardRun(), resume=scorer.path, console=QUIET)
    assert "dsr1-tune score" in finished.value.hint


def test_reward_model_folder_that_does_not_fit_is_refused(scorer: RunFolder, tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(scorer.adapter, folder)
    (folder / "reward_head.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"reward_head\.safetensors: cannot be read"):
        load_scalar(folder)
    told = json.loads((folder / "reward_config.json").read_text())
    (folder / "reward_config.json").write_text(json.dumps({**told, "chat_template_sha256": "another"}))
    with pytest.raises(ModelError, match="was trained over another chat template"):
        load_scalar(folder)
    (folder / "reward_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"reward_config\.json: has no 'base'"):
        load_scalar(folder)


def test_reward_run_has_no_sample_answers() -> None:
    with pytest.raises(ConfigError, match="samples"):
        load_config(RewardRun, None, {}, ["samples=2"])


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """stopped(3, go) runs go() and presses Ctrl-C in the middle of the third step."""

    def stop(step: int, go: Callable[[], Any]) -> None:
        train = reward.RewardTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return train(self, *given)

        with monkeypatch.context() as patch:
            patch.setattr(reward.RewardTrainer, "training_step", disturbed)
            with pytest.raises(KeyboardInterrupt):
                go()

    return stop


def test_reward_resumed_run_is_an_unbroken_one(
    zebras: Path, tiny_base: Path, tmp_path: Path, stopped: Callable[..., None]
) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(zebras.read_text().splitlines()[:16]))
    # 12 pairs to train on: a second epoch begins behind the checkpoint, with its rows in another order.
    schedule = {"max_steps": 5, "learning_rate": 0.01, "batch_size": 4, "gradient_checkpointing": False}
    unbroken = reward.run(reward_config(few, tiny_base, tmp_path / "one", schedule=schedule), console=QUIET)
    broken = reward_config(few, tiny_base, tmp_path / "two", schedule=schedule)
    stopped(2, lambda: reward.run(broken, console=QUIET))
    with pytest.raises(ModelError, match=r"is a reward run that is not finished \(interrupted\)"):
        load_scalar(tmp_path / "two")
    resumed = reward.run(RewardRun(), resume=tmp_path / "two", console=QUIET)
    for name in ("reward_head.safetensors", "adapter_model.safetensors"):
        one, two = (load_file(folder.adapter / name) for folder in (unbroken, resumed))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    losses = [[json.loads(line)["loss"] for line in f.log_file.read_text().splitlines()] for f in (unbroken, resumed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_reward_model_learns_with_other_methods(method: str, zebras: Path, tiny_base: Path, tmp_path: Path) -> None:
    told = io.StringIO()
    config = reward_config(zebras, tiny_base, tmp_path / "run", steps=40, method=method)
    run = reward.run(config, console=Console(file=told, width=200))
    assert run.evaluation()["after"]["accuracy"] > 0.9
    assert ("What is in 4 bits" in told.getvalue()) == (method == "qlora")
    found = score_conversations(load_scalar(run.path), [([Message("user", "say 3")], "a zebra river")])
    assert len(found) == 1
    with pytest.raises(ModelError, match="is a reward model"):
        load_with_adapter(run.path)
    if method == "full":
        with pytest.raises(ModelError, match="is a reward model"):
            load_with_adapter(run.model)
        # Only what is trained: a base in 4 bits, or the whole model, would be many times as large.
    (checkpoint,) = run.checkpoints.glob("checkpoint-*/model.safetensors")
    weights = load_file(checkpoint)
    assert "head.weight" in weights
    assert not any(name.endswith("lm_head.weight") for name in weights)
    assert method == "full" or all(".lora_" in name or name == "head.weight" for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["keep", "continue"])
def test_reward_model_starts_from_a_trained_adapter(
    adapter: str, zebras: Path, tiny_base: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"question": f"what is {n}?", "answer": f"it is number {n}"} for n in range(12)]))
    first = LoraRun.model_validate(
        {
            "data": {"files": [str(rows)]},
            "base": {"model": str(tiny_base)},
            "schedule": {"max_steps": 2, "learning_rate": 0.02},
            "samples": 0,
            "out": str(tmp_path / "sft"),
        }
    )
    begun = lora.run(first, console=QUIET)
    config = reward_config(zebras, begun.path, tmp_path / "run", start={"adapter": adapter})
    run = reward.run(config, console=QUIET)
    assert run.evaluation()["after"]["accuracy"] > 0.75
    assert load_scalar(run.path).facts.base == str(tiny_base)


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_reward_run_of_one_step_learns(zebras: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder = reward.run(reward_config(zebras, tiny_base, tmp_path / "run", steps=1), console=QUIET)
    (line,) = read_log(folder)
    assert line["learning_rate"] == pytest.approx(0.015 / 2)
    metrics = folder.manifest()["metrics"]
    assert metrics["loss_after"] != metrics["loss_before"]
