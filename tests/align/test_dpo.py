"""`dpo` on tiny models: what it learns, what its reference is, what is in memory, and how it goes on."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.align import dpo
from dsr1_tune.config import DpoRun
from dsr1_tune.errors import DataError, ModelError
from dsr1_tune.export import merge
from dsr1_tune.runs.folder import RunFolder
from tests.align.dpo_runs import PAIRS, ConfigureDpo, Done, go, log_of
from tests.lora_runs import in_asyncio

# --- what is learned -------------------------------------------------------------------------------------------------


def test_dpo_raises_chosen_answers_above_rejected_ones(dpo_run: Done) -> None:
    manifest, told = dpo_run.folder.manifest(), dpo_run.folder.evaluation()
    assert (manifest["status"], manifest["command"]) == ("finished", "dpo")
    metrics = manifest["metrics"]
    assert metrics["reward_accuracy"] == 1.0 and metrics["reward_margin"] > 0.5
    assert metrics["accuracy_after"] >= metrics["accuracy_before"] and metrics["length_accuracy"] == 0.0
    assert abs(metrics["reloaded_loss"] - metrics["loss_after"]) < 1e-5
    assert told["preferences"]["reward_margin"] == metrics["reward_margin"]
    assert len(told["after"]["pairs"]) == 3 == len((dpo_run.folder.data / "eval.jsonl").read_text().splitlines())


def test_dpo_run_can_be_merged_and_measures_the_same(dpo_run: Done, tmp_path: Path) -> None:
    told = io.StringIO()
    merge.run(dpo_run.folder.path, tmp_path / "merged", console=Console(file=told, width=200))
    loss = dpo_run.folder.manifest()["metrics"]["loss_after"]
    assert f"Held-out loss {loss:.4f}; the run measured {loss:.4f}" in told.getvalue()


def test_dpo_runs_in_a_thread(configure_dpo: ConfigureDpo, tmp_path: Path) -> None:
    folder = in_asyncio(lambda: go(configure_dpo(tmp_path / "run", schedule={"max_steps": 1})))
    assert folder.manifest()["status"] == "finished"
    assert log_of(folder)[0]["learning_rate"] == pytest.approx(1e-2 / 2)


def test_dpo_run_that_changes_nothing_is_not_finished(configure_dpo: ConfigureDpo, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="training has changed nothing"):
        go(configure_dpo(tmp_path / "run", schedule={"max_steps": 1, "learning_rate": 1e-300}))
    assert RunFolder(tmp_path / "run").manifest()["status"] == "failed"


# --- beginning with a run --------------------------------------------------------------------------------------------


# --- losses ----------------------------------------------------------------------------------------------------------

LOG2 = math.log(2)
# What each is worth before the model has moved, with β 0.1 and label smoothing 0.2.
AT_FIRST = {
    "sigmoid": LOG2,
    "hinge": 1.0,
    "ipo": (1 / 0.2) ** 2,
    "exo_pair": 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2),
    "nca_pair": 2 * LOG2,
    "robust": LOG2,
    "bco_pair": 2 * LOG2,
    "sppo_hard": 2 * 5.0**2,
    "aot": LOG2,
    "aot_unpaired": LOG2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "sigmoid_norm": LOG2,
}


def test_dpo_losses_are_summed_by_their_weights(configure_dpo: ConfigureDpo, tmp_path: Path) -> None:
    weights = {name: 1 + number for number, name in enumerate(AT_FIRST)}
    told = {"loss_type": list(AT_FIRST), "loss_weights": list(weights.values()), "label_smoothing": 0.2}
    folder = go(configure_dpo(tmp_path / "run", dpo=told, schedule={"max_steps": 2}))
    wanted = sum(weights[name] * value for name, value in AT_FIRST.items())
    assert log_of(folder)[0]["loss"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*AT_FIRST, "sigmoid,sft"])
def test_dpo_learns_with_each_loss_alone(configure_dpo: ConfigureDpo, tmp_path: Path, loss: str) -> None:
    told: dict[str, Any] = {"loss_type": loss.split(",")}
    if loss in ("robust", "exo_pair", "aot", "aot_unpaired"):
        told["label_smoothing"] = 0.2
    folder = go(configure_dpo(tmp_path / "run", dpo=told, schedule={"epochs": 1, "learning_rate": 2e-2}))
    assert folder.manifest()["metrics"]["reward_accuracy"] == 1.0
    if loss in AT_FIRST:
        assert log_of(folder)[0]["loss"] == pytest.approx(AT_FIRST[loss], rel=1e-4)


# --- going on, and what is refused -----------------------------------------------------------------------------------


@pytest.fixture
def press() -> Iterator[Callable[[int, Callable[[], Any]], None]]:
    """press(3, go) runs go() and presses Ctrl-C in the middle of the third step."""

    def stop(step: int, run: Callable[[], Any]) -> None:
        train = dpo.DPOTrainer.training_step

        def disturbed(self: Any, *given: Any) -> Any:
            if self.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return train(self, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dpo.DPOTrainer, "training_step", disturbed)
            with pytest.raises(KeyboardInterrupt):
                run()

    before = signal.getsignal(signal.SIGINT)
    yield stop
    signal.signal(signal.SIGINT, before)


def test_dpo_resumed_run_is_an_unbroken_one(
    dpo_run: Done, configure_dpo: ConfigureDpo, tmp_path: Path, press: Any
) -> None:
    watch = {"trackers": [], "eval_steps": 4}
    press(3, lambda: go(configure_dpo(tmp_path / "run", watch=watch)))
    folder = go(DpoRun(), tmp_path / "run")
    for line, other in zip(log_of(folder), log_of(dpo_run.folder), strict=True):
        # What a clock measured; and the experts are counted over the last steps of one sitting.
        timed = {"seconds", "tokens_per_second", "memory/rss_gib"}
        names = [name for name in line if name not in timed and not name.startswith("experts/")]
        assert {name: line[name] for name in names} == {name: other[name] for name in names}
    saved, whole = (load_file(run.adapter / "adapter_model.safetensors") for run in (folder, dpo_run.folder))
    assert all(torch.equal(saved[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("text", "changes", "reason"),
    [
        ('{"input": "why?", "output": "because"}\n' * 2, {}, "no row has a better and a worse answer"),
        ("", {}, "empty|no rows|nothing"),
        (
            "\n".join(map(json.dumps, PAIRS[:4])),
            {"schedule": {"max_tokens": 16}},
            "of 4 records none .* 16 are allowed",
        ),
        (json.dumps(PAIRS[0]), {}, "only this one pair"),
    ],
)
def test_dpo_refuses_bad_files_with_their_place(
    configure_dpo: ConfigureDpo, tmp_path: Path, text: str, changes: dict[str, Any], reason: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=reason) as told:
        go(configure_dpo(tmp_path / "run", data=tmp_path / "bad.jsonl", **changes))
    assert "bad.jsonl" in str(told.value) and told.value.hint and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [("qwen3_moe", "lora"), ("qwen3_moe", "qlora"), ("mixtral", "full"), ("gpt_oss", "lora"), ("llama", "qlora")],
)
def test_dpo_trains_other_families(
    configure_dpo: ConfigureDpo, tiny_model: Any, tmp_path: Path, family: str, method: str
) -> None:
    rate = 1e-3 if method == "full" else 1e-2
    given = configure_dpo(tmp_path / "run", base=tiny_model(family), method=method, schedule={"learning_rate": rate})
    folder = go(given)
    assert folder.manifest()["metrics"]["reward_accuracy"] == 1.0


@pytest.mark.slow
def test_dpo_in_two_processes_takes_the_steps_of_one(dpo_pairs: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Of 24 pairs to learn from, so that no batch has to be filled up."""
    curves = []
    for count, size in ((1, 8), (2, 4)):
        told = [f"schedule.{name}" for name in (f"batch_size={size}", "learning_rate=0.01", "max_tokens=128")]
        told += ["data.eval_share=0.2", "samples=0", "watch.trackers=[]", "watch.eval_steps=2"]
        sets = [part for setting in told for part in ("--set", setting)]
        given = ["--data", str(dpo_pairs), "--model", str(tiny_base), "--out", str(tmp_path / f"run{count}"), *sets]
        command = [sys.executable, "-m", "dsr1_tune", "dpo", *given, "--processes", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = log_of(RunFolder(tmp_path / f"run{count}"))
        curves.append([line[name] for line in lines for name in ("loss", "grad_norm", "rewards/margins")])
    assert len(curves[0]) == 9 and curves[1] == pytest.approx(curves[0], rel=1e-3, abs=1e-5)
