"""Packing, long records, roles, thoughts and a stretched context in whole runs of `lora`."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dsr1_tune.config import Base, Data, LoraRun, QloraRun, Schedule, Sequences
from dsr1_tune.errors import ModelError
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.moe.monitor import is_token
from dsr1_tune.runs import session
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer.trainer import ResumableTrainer
from dsr1_tune.train import lora, qlora

NUM_ROWS = 40
USUAL = Sequences()


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Short talks of one to four exchanges."""
    draw = random.Random(0)
    rows = []
    for number in range(NUM_ROWS):
        turns = [{"role": "system", "content": "Add."}]
        for _ in range(draw.randint(1, 4)):
            one, other = draw.randint(0, 99), draw.randint(0, 99)
            turns.append({"role": "user", "content": f"{number}: {one}+{other}?"})
            turns.append({"role": "assistant", "content": f"<think>hm</think>{one + other}"})
        rows.append({"messages": turns})
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Go = Callable[..., tuple[RunFolder, str]]


@pytest.fixture
def go(tiny_model: Any, data_file: Path, tmp_path: Path) -> Go:
    """go("out", Sequences(...), max_tokens=200) trains, and returns the folder and what was printed."""
    base = tiny_model("deepseek_v3")

    def go_(
        out: str, sequences: Sequences = USUAL, family: Path = base, context: int = 0, **changes: Any
    ) -> tuple[RunFolder, str]:
        schedule = {"learning_rate": 1e-2, "batch_size": 4, "max_tokens": 400, "gradient_checkpointing": False}
        told = io.StringIO()
        config = LoraRun(
            data=Data(files=(data_file,)),
            base=Base(model=str(family), context=context),
            schedule=Schedule(**{**schedule, **changes}),
            sequences=sequences,
            out=tmp_path / out,
            samples=1,
            sample_tokens=4,
        )
        return lora.run(config, console=Console(file=told, width=300)), told.getvalue()

    return go_


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.log_file.read_text().splitlines()]


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_packed_step_is_the_step_over_the_same_records(go: Go, checkpointing: bool) -> None:
    """All records in one step: the loss is per learned token over the accumulated batches, whatever they hold."""
    each, _ = go("each", batch_size=NUM_ROWS, gradient_checkpointing=checkpointing)
    packed, said = go(
        "packed",
        Sequences(packing=True),
        batch_size=3,
        gradient_accumulation_steps=5,
        gradient_checkpointing=checkpointing,
    )
    assert "36 records packed into" in said
    (one,), (other,) = log_of(each), log_of(packed)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert other["num_tokens"] == one["num_tokens"]
    after = [run.evaluation()["after"]["loss"] for run in (each, packed)]
    assert after[0] == pytest.approx(after[1], rel=1e-4)


@pytest.mark.parametrize("family", [pytest.param("gpt_oss", marks=pytest.mark.slow), "qwen3_moe"])
def test_packed_step_is_the_same_in_other_families(go: Go, tiny_model: Any, family: str) -> None:
    """gpt_oss builds its masks without looking at the positions, and is given them."""
    folder = tiny_model(family, family)
    each, _ = go("each", family=folder, batch_size=NUM_ROWS)
    packed, _ = go("packed", Sequences(packing=True), family=folder, batch_size=3, gradient_accumulation_steps=5)
    assert log_of(packed)[0]["loss"] == pytest.approx(log_of(each)[0]["loss"], rel=1e-5)
    assert log_of(packed)[0]["grad_norm"] == pytest.approx(log_of(each)[0]["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_packed_step_is_the_same_over_4_bits(tiny_model: Any, data_file: Path, tmp_path: Path) -> None:
    base = Base(model=str(tiny_model("deepseek_v3")))
    losses = []
    for packing, batch_size in ((False, NUM_ROWS), (True, 3)):
        config = QloraRun(
            data=Data(files=(data_file,)),
            base=base,
            schedule=Schedule(batch_size=batch_size, gradient_accumulation_steps=5 if packing else 1, max_tokens=400),
            sequences=Sequences(packing=packing),
            out=tmp_path / f"packing-{packing}",
            samples=0,
        )
        losses.append(log_of(qlora.run(config, console=Console(file=io.StringIO())))[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_packed_batches_reach_the_trainer_and_their_tokens_are_counted(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[dict[str, torch.Tensor]] = []
    as_before = ResumableTrainer.training_step

    def watch(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(dict(inputs))
        return as_before(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ResumableTrainer, "training_step", watch)
    folder, _ = go("packed", Sequences(packing=True), epochs=2, batch_size=2)
    assert all(set(batch) == {"input_ids", "labels", "position_ids"} for batch in batches)
    assert any((batch["position_ids"] == 0).sum() > len(batch["position_ids"]) for batch in batches)
    assert log_of(folder)[-1]["num_tokens"] == sum(int(is_token(batch["position_ids"]).sum()) for batch in batches)


@pytest.mark.slow
def test_packed_run_resumes_with_the_same_sequences(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = go("whole", Sequences(packing=True), epochs=3, batch_size=2, save_steps=1)
    as_before = ResumableTrainer.training_step

    def break_off(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            raise RuntimeError("the power is gone")
        return as_before(self, *args, **kwargs)

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="power"):
        broken.setattr(ResumableTrainer, "training_step", break_off)
        go("again", Sequences(packing=True), epochs=3, batch_size=2, save_steps=1)
    again = lora.run(LoraRun(), resume=tmp_path / "again", console=Console(file=io.StringIO()))
    assert len(log_of(whole)) > 6
    assert [line["loss"] for line in log_of(again)] == [line["loss"] for line in log_of(whole)]


# --- long records ----------------------------------------------------------------------------------------------------


def test_split_records_stay_on_one_side(go: Go) -> None:
    folder, said = go("split", Sequences(longer="split"), max_tokens=150)
    assert "were split between turns" in said
    held_out = [json.loads(line) for line in (folder.path / "data" / "eval.jsonl").read_text().splitlines()]
    assert len(held_out) == 4
    assert f"{len(held_out)} held-out records" in said
    assert len({row["source"]["line"] for row in held_out}) == 4
    assert folder.evaluation()["before"]["num_records"] >= 4


def test_truncated_records_are_reported(go: Go) -> None:
    _, said = go("cut", Sequences(longer="truncate"), max_tokens=150)
    assert "records were cut at 150 tokens" in said


def test_truncated_records_are_not_sampled(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    as_before = session.sample_answers

    def watch(model: Any, tokenizer: Any, records: Any, *args: Any, **kwargs: Any) -> Any:
        asked.extend(len(record.messages) for record in records)
        return as_before(model, tokenizer, records, *args, **kwargs)

    monkeypatch.setattr(session, "sample_answers", watch)
    go("cut", Sequences(longer="truncate"), max_tokens=80)
    assert asked == [3, 3]  # before and after: system, question and answer, the only talks that fit


# --- a longer context ------------------------------------------------------------------------------------------------


def test_records_longer_than_the_context_are_refused(go: Go, tiny_model: Any) -> None:
    short = tiny_model("qwen3_moe", "short", max_position_embeddings=64)
    with pytest.raises(ModelError, match="longer than its context of 64") as error:
        go("out", family=short)
    assert "base.context" in error.value.hint


def test_stretched_context_is_trained_saved_and_loaded_again(go: Go, tiny_model: Any) -> None:
    short = tiny_model("deepseek_v3", "short", max_position_embeddings=64)
    folder, _ = go("long", family=short, context=512)
    loaded = load_with_adapter(folder.path)
    assert loaded.model.config.max_position_embeddings == 512
    assert loaded.model.config.rope_parameters["factor"] == 8.0
    # The check at the end of a run loads base and adapter afresh too: with another rope the loss would differ.
    metrics = json.loads((folder.path / "manifest.json").read_text())["metrics"]
    assert metrics["reloaded_loss"] == pytest.approx(metrics["loss_after"], abs=1e-3)
