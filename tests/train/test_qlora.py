"""`qlora` end to end on tiny models: 4 bits held and told, trained, stopped, resumed, talked to."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.config import Adapter, Base, Data, LoraRun, QloraRun, Schedule
from dsr1_tune.config.load import load_config
from dsr1_tune.data.encode.example import encode_all
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ConfigError, ModelError, RunError
from dsr1_tune.models import load
from dsr1_tune.models.trained import attach
from dsr1_tune.moe.quantized_experts import is_in_nf4
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import trainer
from dsr1_tune.train import lora, qlora

ROWS = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sums.json"
    path.write_text(json.dumps(ROWS))
    return path


def config(data_file: Path, base: Path, out: Path, **schedule: Any) -> QloraRun:
    told = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "save_steps": 3} | schedule
    return QloraRun(
        data=Data(files=(data_file,)),
        base=Base(model=str(base), dtype="float32"),
        adapter=Adapter(rank=4),
        schedule=Schedule(**told),
        out=out,
        samples=1,
        sample_tokens=4,
    )


@pytest.fixture(scope="module")
def done(data_file: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    text = io.StringIO()
    asked = config(data_file, tiny_base, tmp_path_factory.mktemp("runs") / "run")
    return qlora.run(asked, console=Console(file=text, width=120)), text.getvalue()


def test_qlora_run_reports_what_is_in_4_bits_and_its_losses(done: tuple[RunFolder, str]) -> None:
    folder, text = done
    manifest = folder.manifest()
    assert (manifest["status"], manifest["command"]) == ("finished", "qlora")
    bits = {line["part"]: line for line in manifest["metrics"]["bits"]}
    assert bits["routed_experts"]["num_in_4bit"] == bits["routed_experts"]["num_weights"] > 0
    assert bits["routed_experts"]["bits"] <= 4.2 and bits["router"]["num_in_4bit"] == 0
    assert manifest["metrics"]["loss_after"] < manifest["metrics"]["loss_before"]
    assert abs(manifest["metrics"]["reloaded_loss"] - manifest["metrics"]["loss_after"]) < 1e-5
    assert "What is in 4 bits" in text and "Talk to it with: dsr1-tune chat" in text


def loss_of(model: Any, folder: RunFolder, tokenizer: Any) -> float:
    """The loss on the held-out rows of a run."""
    kept = prepare(Data(files=(folder.data / "eval.jsonl",)))
    examples, drops = encode_all(kept.records, tokenizer, 128)
    assert examples and not drops
    return held_out_loss(model, examples, tokenizer.pad_token_id).loss


def test_qlora_run_folder_loads_in_4_bits_as_the_trained_model(done: tuple[RunFolder, str]) -> None:
    folder, _ = done
    loaded = attach.load_with_adapter(folder.path)
    assert is_in_nf4(loaded.model) and loaded.model.dtype == torch.float32
    after = folder.evaluation()["after"]["loss"]
    assert loss_of(loaded.model, folder, loaded.tokenizer) == pytest.approx(after, abs=1e-4)


def test_qlora_adapter_also_improves_the_base_that_is_not_quantized(
    done: tuple[RunFolder, str], tiny_base: Path
) -> None:
    folder, _ = done
    loaded = load.load(Base(model=str(tiny_base)))
    before = loss_of(loaded.model, folder, loaded.tokenizer)
    model = attach.attach_adapter(loaded, folder.adapter)
    assert not is_in_nf4(model)
    assert loss_of(model, folder, loaded.tokenizer) < 0.9 * before


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("qwen3_moe", marks=pytest.mark.slow),
        pytest.param("mixtral", marks=pytest.mark.slow),
        "gpt_oss",
        pytest.param("glm4_moe", marks=pytest.mark.slow),
        pytest.param("deepseek_v2", marks=pytest.mark.slow),
    ],
)
def test_qlora_trains_other_families(data_file: Path, tiny_model: Any, tmp_path: Path, family: str) -> None:
    folder = qlora.run(
        config(data_file, tiny_model(family), tmp_path / "run", max_steps=3), console=Console(quiet=True)
    )
    assert folder.manifest()["status"] == "finished"


def test_qlora_resumed_run_is_an_unbroken_one(
    done: tuple[RunFolder, str], data_file: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = trainer.SFTTrainer.training_step, 0

    def stopped(self: Any, *given: Any, **more: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return step(self, *given, **more)

    asked = config(data_file, tiny_base, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.SFTTrainer, "training_step", stopped)
        qlora.run(asked, console=Console(quiet=True))
    with pytest.raises(RunError, match="is a run of qlora"):
        lora.run(LoraRun(), tmp_path / "run", Console(quiet=True))
    folder = qlora.run(QloraRun(), tmp_path / "run", Console(quiet=True))
    want, got = (load_file(f.adapter / "adapter_model.safetensors") for f in (done[0], folder))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)


def test_base_stored_in_4_bits_is_for_qlora_alone(data_file: Path, tiny_base: Path, tmp_path: Path) -> None:
    loaded = load.load(Base(model=str(tiny_base), dtype="float32"), quantized=True)
    loaded.model.save_pretrained(tmp_path / "base")
    for file in [*tiny_base.glob("*token*"), tiny_base / "chat_template.jinja"]:
        shutil.copy(file, tmp_path / "base")
    asked = config(data_file, tmp_path / "base", tmp_path / "run", max_steps=2)
    said = io.StringIO()
    assert qlora.run(asked, console=Console(file=said, width=300)).manifest()["status"] == "finished"
    assert "can be used beside it, but not merged into it" in said.getvalue()
    with pytest.raises(ModelError, match="stored in 4 bits"):
        lora.run(LoraRun(data=asked.data, base=asked.base, out=tmp_path / "lora"), console=Console(quiet=True))
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("adapter.init=pissa", "changes the base weights"),
        ("parallel.strategy=fsdp2", "cannot be shared out"),
        ("adapter.dora=true", "the norms of the base weights"),
    ],
)
def test_qlora_refuses_settings_that_cannot_work_over_4_bits(said: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(QloraRun, sets=[said])
