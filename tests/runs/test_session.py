"""The session of a run: what is evaluated before and after, timed, shown, and checked once it is saved."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from dsr1_tune.config import Base, Data
from dsr1_tune.errors import ModelError
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import lora
from tests.families import save_family
from tests.lora_runs import NUM_HELD_OUT, ROWS, ConfigureLora, FinishedRun, Told, go, go_on, log_of, press, texts_in


def test_session_evaluates_and_samples_answers_before_and_after(lora_run: FinishedRun) -> None:
    evaluation = lora_run.folder.evaluation()
    for when in ("before", "after"):
        loss = evaluation[when]["loss"]
        assert evaluation[when]["perplexity"] == pytest.approx(2.718281828**loss, rel=1e-6)
        assert evaluation[when]["num_records"] == NUM_HELD_OUT
    questions = {row["input"]: row["output"] for row in ROWS}
    for before, after in zip(evaluation["answers_before"], evaluation["answers_after"], strict=True):
        assert before["question"] == after["question"]
        assert questions[before["question"]] == before["reference"] == after["reference"]
    assert len(evaluation["answers_after"]) == 2
    assert evaluation["answers_before"] != evaluation["answers_after"]


def test_session_prints_its_stages_in_order(lora_run: FinishedRun) -> None:
    text = lora_run.text
    parts = ("What is trained", "Before training", "step 8/8", "After training", "Held-out loss (3 records")
    assert sorted(parts, key=text.index) == list(parts)
    assert "Loaded afresh with plain PEFT" in text and f"dsr1-tune chat {lora_run.path}" in text


def test_session_without_held_out_rows_claims_no_held_out_loss(
    configure_lora: ConfigureLora, lora_data: Path, tmp_path: Path
) -> None:
    told = Told()
    folder = go(configure_lora(tmp_path / "run", data=Data(files=(lora_data,), eval_share=0), epochs=1), told=told)
    assert (folder.data / "eval.jsonl").read_text() == ""
    assert len(texts_in(folder.path, "train")) == 30
    assert folder.manifest()["status"] == "finished"
    # The few records on which the adapter is checked are no held-out ones.
    assert "Held-out loss (" not in told.text


def test_session_adds_up_seconds_over_resumptions(configure_lora: ConfigureLora, at_step: Any, tmp_path: Path) -> None:
    at_step(1, press(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        go(configure_lora(tmp_path / "run", max_steps=2, samples=0))
    before = RunFolder(tmp_path / "run").manifest()["seconds"]
    after = go_on(tmp_path / "run").manifest()["seconds"]
    assert after["train"] > before["train"] > 0
    assert after["evaluate_before"] == before["evaluate_before"]


def other_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 3 * weight for name, weight in weights.items()}


def no_expert_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in weights.items() if ".experts." not in name}


@pytest.mark.parametrize("damage", [other_weights, no_expert_weights])
def test_session_check_refuses_an_adapter_that_loads_as_another(
    configure_lora: ConfigureLora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: Any
) -> None:
    load = lora.load_plain_adapter

    def damaged(base: Any, folder: Path) -> PeftModel:
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        assert damage(weights).keys() <= weights.keys()
        save_file(damage(weights), file)
        return load(base, folder)

    monkeypatch.setattr(lora, "load_plain_adapter", damaged)
    with pytest.raises(ModelError, match="loaded afresh"):
        go(configure_lora(tmp_path / "run", samples=0))
    assert RunFolder(tmp_path / "run").manifest()["status"] == "failed"


def a_tenth_less(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 0.9 * weight if ".lora_B." in name else weight for name, weight in weights.items()}


@pytest.mark.parametrize("family", [pytest.param("minimax", marks=pytest.mark.slow), "minimax_m2"])
def test_session_check_in_16_bits_allows_what_rounding_explains_and_no_more(
    configure_lora: ConfigureLora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_tokenizer: Any, family: str
) -> None:
    base = save_family(tmp_path / "base", tiny_tokenizer, family)
    given = {"base": Base(model=str(base), dtype="bfloat16"), "samples": 0, "max_steps": 6}
    saved = go(configure_lora(tmp_path / "right", **given))
    metrics = saved.manifest()["metrics"]
    assert metrics["dtype"] == "bfloat16" and metrics["loss_before"] - metrics["loss_after"] > 0.5
    load = lora.load_plain_adapter

    def damaged(base: Any, folder: Path) -> PeftModel:
        file = folder / "adapter_model.safetensors"
        save_file(a_tenth_less(load_file(file)), file)
        return load(base, folder)

    monkeypatch.setattr(lora, "load_plain_adapter", damaged)
    with pytest.raises(ModelError, match=r"rounding explains a difference of 0\.0"):
        go(configure_lora(tmp_path / "wrong", **given))


def test_a_run_of_one_step_learns(configure_lora: ConfigureLora, tmp_path: Path) -> None:
    folder = go(configure_lora(tmp_path / "run", max_steps=1))
    (line,) = log_of(folder.path)
    assert line["learning_rate"] == pytest.approx(1e-2 / 2)
    weights = load_file(folder.adapter / "adapter_model.safetensors")
    assert all(weight.any() for name, weight in weights.items() if ".lora_B." in name)
    assert folder.manifest()["metrics"]["loss_after"] < folder.manifest()["metrics"]["loss_before"]


def test_a_run_that_changes_nothing_is_not_finished(configure_lora: ConfigureLora, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="run: training has changed nothing") as caught:
        go(configure_lora(tmp_path / "run", max_steps=2, learning_rate=1e-300, weight_decay=0.5))
    assert caught.value.exit_code == 2 and "raise schedule.learning_rate" in caught.value.hint
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["status"] == "failed" and "changed nothing" in folder.manifest()["error"]
    assert not folder.adapter.exists()
    with pytest.raises(ModelError, match="training has changed nothing"):
        go_on(folder.path)
