"""`lora` end to end on a tiny DeepSeek-V3: what a run leaves, what it never does, and how it goes on when disturbed."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dsr1_tune.config import GROUPS, Adapter, Base, Data
from dsr1_tune.data.encode.example import encode_all
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ModelError
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from tests.lora_runs import ConfigureLora, FinishedRun, curve_of, go, litter, log_of, texts_in

# --- what a run leaves -----------------------------------------------------------------------------------------------


def test_lora_run_folder_holds_all_outputs(lora_run: FinishedRun) -> None:
    names = {str(path.relative_to(lora_run.path)) for path in lora_run.path.rglob("*") if path.is_file()}
    expected = {"manifest.json", "train_log.jsonl", "eval.json"}
    expected |= {f"data/{name}" for name in ("train.jsonl", "eval.jsonl", "rejected.jsonl", "report.json")}
    weights = ("adapter_model.safetensors", "adapter_config.json")
    expected |= {f"adapter/{name}" for name in (*weights, "tokenizer.json", "chat_template.jinja")}
    assert expected <= names
    assert any(name.startswith("tensorboard/events.out.tfevents") for name in names)
    assert {path.name for path in lora_run.path.iterdir()} == {
        *("manifest.json", "train_log.jsonl", "eval.json", "data", "adapter", "tensorboard", "checkpoints"),
        *("report.html", "experts.png", "experts_load.npz"),
    }
    assert not litter(lora_run.path)
    base = Path(lora_run.folder.manifest()["base"]["folder"])
    for place in (lora_run.folder.adapter, lora_run.folder.latest_checkpoint()):
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (place / name).read_bytes() == (base / name).read_bytes(), place


def test_lora_adapter_names_the_base_of_the_run(lora_run: FinishedRun) -> None:
    config = json.loads((lora_run.folder.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == lora_run.folder.manifest()["base"]["name"]


def test_lora_output_files_follow_the_umask(lora_run: FinishedRun) -> None:
    mask = os.umask(0)
    os.umask(mask)
    files = [lora_run.folder.manifest_file, lora_run.folder.eval_file, *lora_run.folder.adapter.iterdir()]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}
    assert lora_run.folder.adapter.stat().st_mode & 0o777 == 0o777 & ~mask


# --- what is learned, and what is left alone -------------------------------------------------------------------------


def test_lora_lowers_the_held_out_loss(lora_run: FinishedRun) -> None:
    evaluation = lora_run.folder.evaluation()
    assert evaluation["after"]["loss"] < 0.9 * evaluation["before"]["loss"]


def test_lora_never_trains_on_held_out_records(lora_run: FinishedRun, tiny_tokenizer: Any) -> None:
    seen = Counter(
        tiny_tokenizer.decode(ids[mask == 1])
        for batch in lora_run.batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    held_out = texts_in(lora_run.path, "eval")
    assert not any(f"{question}<|im_end|>" in text for question, _ in held_out for text in seen)
    # All others are: once in each epoch, whole.
    shown = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    assert seen == Counter({shown.format(*texts): 2 for texts in texts_in(lora_run.path, "train")})


def test_lora_learns_answers_only(lora_run: FinishedRun, tiny_tokenizer: Any) -> None:
    learned = {
        tiny_tokenizer.decode(labels[labels != -100]) for batch in lora_run.batches for labels in batch["labels"]
    }
    assert learned == {f"{answer}<|im_end|>" for _, answer in texts_in(lora_run.path, "train")}


def test_lora_leaves_the_base_unchanged(lora_run: FinishedRun, tiny_base: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(tiny_base).state_dict()
    after = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): weight
        for name, weight in lora_run.model.state_dict().items()
        if ".lora_" not in name
    }
    assert after.keys() == before.keys()
    # Bit for bit; the router, its correction bias and the embeddings are among them.
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert any(name.endswith("mlp.gate.weight") for name in before)


def test_lora_trains_every_group_and_nothing_else(lora_run: FinishedRun) -> None:
    part_of = Anatomy(lora_run.model)
    updates = {name: weight for name, weight in lora_run.model.named_parameters() if weight.requires_grad}
    assert {part_of(name) for name in updates} == set(GROUPS)
    assert all(".lora_" in name for name in updates)
    # B starts from zero.
    assert [name for name, weight in updates.items() if ".lora_B" in name and not weight.any()] == []
    coverage = {line["part"]: line for line in lora_run.folder.manifest()["metrics"]["coverage"]}
    for group in GROUPS:
        assert coverage[group]["num_trained"] == sum(w.numel() for name, w in updates.items() if part_of(name) == group)
        assert coverage[group]["num_adapted"] == coverage[group]["num_base"]
    assert coverage["router"]["num_trained"] == coverage["embeddings"]["num_trained"] == 0


def test_lora_adapter_loads_with_plain_peft(lora_run: FinishedRun, tiny_base: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(base, lora_run.folder.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(lora_run.folder.adapter)
    kept = prepare(Data(files=(lora_run.path / "data" / "eval.jsonl",)))
    examples, drops = encode_all(kept.records, tokenizer, 128)
    assert not drops
    loss = held_out_loss(model, examples, tokenizer.pad_token_id).loss
    assert loss == pytest.approx(lora_run.folder.evaluation()["after"]["loss"], abs=1e-4)


def test_lora_can_leave_groups_out(configure_lora: ConfigureLora, tmp_path: Path) -> None:
    folder = go(configure_lora(tmp_path / "run", adapter=Adapter(groups=("attention",)), epochs=0.5, samples=0))
    assert all(".self_attn." in name for name in load_file(folder.adapter / "adapter_model.safetensors"))
    trained = {line["part"] for line in folder.manifest()["metrics"]["coverage"] if line["num_trained"]}
    assert trained == {"attention"}
    assert folder.manifest()["metrics"]["num_steps"] == 2


@pytest.mark.parametrize("family", ["qwen3_moe", "llama"])
def test_lora_trains_other_architectures(
    configure_lora: ConfigureLora, tiny_model: Any, tmp_path: Path, family: str
) -> None:
    base = Base(model=str(tiny_model(family)))
    evaluation = go(configure_lora(tmp_path / "run", base=base, samples=0)).evaluation()
    assert evaluation["after"]["loss"] < evaluation["before"]["loss"]


# --- the same again --------------------------------------------------------------------------------------------------


def test_lora_with_the_same_seed_gives_the_same_run(
    configure_lora: ConfigureLora, lora_run: FinishedRun, tmp_path: Path
) -> None:
    again = go(configure_lora(tmp_path / "run"))
    assert curve_of(again.path) == curve_of(lora_run.path)
    assert again.evaluation() == lora_run.folder.evaluation()
    weights, others = (load_file(run.adapter / "adapter_model.safetensors") for run in (again, lora_run.folder))
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_lora_with_another_seed_gives_another_run(
    configure_lora: ConfigureLora, lora_run: FinishedRun, tmp_path: Path
) -> None:
    other = go(configure_lora(tmp_path / "run", seed=7, samples=0))
    assert texts_in(other.path, "eval") != texts_in(lora_run.path, "eval")
    assert [line["loss"] for line in log_of(other.path)] != [line["loss"] for line in log_of(lora_run.path)]


def test_lora_with_gradient_checkpointing_gives_the_same_numbers(
    configure_lora: ConfigureLora, lora_run: FinishedRun, tmp_path: Path
) -> None:
    folder = go(configure_lora(tmp_path / "run", gradient_checkpointing=True, samples=0))
    assert curve_of(folder.path) == pytest.approx(curve_of(lora_run.path), rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lora_trains_a_base_in_16_bits(
    configure_lora: ConfigureLora, tiny_base: Path, tmp_path: Path, dtype: str
) -> None:
    folder = go(configure_lora(tmp_path / "run", base=Base(model=str(tiny_base), dtype=dtype)))
    evaluation = folder.evaluation()
    assert evaluation["after"]["loss"] < 0.9 * evaluation["before"]["loss"]


def test_lora_run_whose_update_no_weight_can_tell_is_not_finished(
    configure_lora: ConfigureLora, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no weight of the base differs with the update added to it") as caught:
        go(configure_lora(tmp_path / "run", learning_rate=1e-30, max_steps=2, samples=0))
    assert "raise schedule.learning_rate" in caught.value.hint
    assert RunFolder(tmp_path / "run").manifest()["status"] == "failed"
    assert not (tmp_path / "run" / "adapter").exists()


# --- Ctrl-C and --resume ---------------------------------------------------------------------------------------------
