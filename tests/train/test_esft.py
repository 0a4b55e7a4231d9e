"""`esft` and `experts` end to end on tiny models: which experts are trained, that no other moves, and what is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter, Base, Data, Esft, EsftRun, Router
from dsr1_tune.data.encode.example import encode_all
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.models import load as loading
from dsr1_tune.models.trained import attach
from dsr1_tune.models.trained.experts import attach_experts
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.select import Choice
from dsr1_tune.runs import session
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import esft, experts
from tests.train.conftest import ConfigureEsft


def experts_in(model: Any) -> dict[str, Tensor]:
    """Every routed expert's weights and biases, by layer, number and name."""
    return {
        f"{block.name}.{number}.{name}": expert
        for block in find_experts(model)
        for name, fused in block.module.named_parameters(recurse=False)
        for number, expert in enumerate(fused.detach())
    }


def moved(before: Any, after: Any) -> set[str]:
    """The experts that differ; everything else is to be the same, bit for bit."""
    fused = {f"{block.name}.{name}" for block in find_experts(before) for name, _ in block.module.named_parameters()}
    old, new = before.state_dict(), after.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - fused)
    ours, theirs = experts_in(before), experts_in(after)
    return {name for name in ours if not torch.equal(ours[name], theirs[name])}


def chosen_in(folder: RunFolder) -> set[tuple[str, int]]:
    choice = Choice.read(folder.choice_file)
    return {(name, number) for name, numbers in choice.chosen.items() for number in numbers}


def loss_of(model: Any, folder: RunFolder, tokenizer: Any) -> float:
    examples, _ = encode_all(prepare(Data(files=(folder.data / "eval.jsonl",))).records, tokenizer, 128)
    return held_out_loss(model, examples, tokenizer.pad_token_id).loss


# --- what it leaves --------------------------------------------------------------------------------------------------


def test_esft_lowers_the_held_out_loss_and_records_it(esft_run: RunFolder) -> None:
    metrics, told = esft_run.manifest()["metrics"], esft_run.evaluation()
    assert told["after"]["loss"] < 0.98 * told["before"]["loss"]
    assert metrics["reloaded_loss"] == pytest.approx(metrics["loss_after"], abs=1e-5)
    assert metrics["num_steps"] == 8
    assert metrics["experts"] == {"chosen": len(chosen_in(esft_run)), "of": 4}
    assert esft_run.manifest()["status"] == "finished"
    assert {path.name for path in esft_run.experts.iterdir()} >= {
        *("experts.safetensors", "experts_config.json", "tokenizer.json", "chat_template.jinja")
    }


def test_esft_audit_counts_the_chosen_experts_alone(esft_run: RunFolder) -> None:
    coverage = {line["part"]: line for line in esft_run.manifest()["metrics"]["coverage"]}
    routed = coverage.pop("routed_experts")
    share = len(chosen_in(esft_run)) / 4
    assert routed["num_adapted"] == share * routed["num_base"]
    if esft_run.path.name == "weights":
        assert routed["num_trained"] == share * routed["num_base"]
        assert routed["num_frozen"] == (1 - share) * routed["num_base"]
    else:
        assert routed["num_trained"] == len(chosen_in(esft_run)) * 8 * (64 + 128 + 64 + 64)
        assert routed["num_frozen"] == routed["num_base"]
    assert all(line["num_trained"] == line["num_adapted"] == 0 for line in coverage.values())
    assert all(line["num_frozen"] == line["num_base"] for line in coverage.values())


def test_esft_run_folder_loads_as_the_trained_model(esft_run: RunFolder) -> None:
    loaded = attach.load_with_adapter(esft_run.path)
    assert loss_of(loaded.model, esft_run, loaded.tokenizer) == pytest.approx(
        esft_run.evaluation()["after"]["loss"], abs=1e-5
    )
    also = attach.load_with_adapter(esft_run.experts)
    assert loss_of(also.model, esft_run, also.tokenizer) == pytest.approx(
        esft_run.evaluation()["after"]["loss"], abs=1e-5
    )


def test_esft_files_hold_the_chosen_experts_alone(esft_run: RunFolder) -> None:
    card = json.loads((esft_run.experts / "experts_config.json").read_text())
    assert card["method"] == esft_run.path.name
    assert {(name, number) for name, layer in card["layers"].items() for number in layer["chosen"]} == chosen_in(
        esft_run
    )
    saved = {
        name: w for name, w in load_file(esft_run.experts / "experts.safetensors").items() if "correction" not in name
    }
    num_chosen = len(chosen_in(esft_run))
    per_expert = 2 * 64 * 64 + 64 * 64 if esft_run.path.name == "weights" else 8 * (64 + 128 + 64 + 64)
    assert sum(weight.numel() for weight in saved.values()) == num_chosen * per_expert
    checkpoint = load_file(esft_run.checkpoints / "checkpoint-8" / "model.safetensors")
    trained = {name: weight for name, weight in checkpoint.items() if ".chosen." in name}
    assert sum(weight.numel() for weight in trained.values()) == num_chosen * per_expert
    assert all("e_score_correction_bias" in name for name in checkpoint.keys() - trained.keys())
    state = torch.load(esft_run.checkpoints / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"]
    held = sum(value.numel() for entry in state.values() for value in entry.values() if value.dim())
    assert held == 2 * num_chosen * per_expert


# --- which experts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        "deepseek_v3",
        pytest.param("deepseek_v2", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", marks=pytest.mark.slow),
        pytest.param("mixtral", marks=pytest.mark.slow),
        "gpt_oss",
    ],
)
def test_esft_moves_the_chosen_experts_and_nothing_else(
    configure_esft: ConfigureEsft, tiny_model: Any, tmp_path: Path, family: str
) -> None:
    start = tiny_model(family)
    base = Base(model=str(start))
    folder = esft.run(configure_esft(tmp_path / "run", base=base, samples=0, gradient_checkpointing=True))
    before = AutoModelForCausalLM.from_pretrained(start)
    changed = moved(before, attach.load_with_adapter(folder.path).model)
    assert {(name.rsplit(".", 2)[0], int(name.rsplit(".", 2)[1])) for name in changed} == chosen_in(folder)
    # Of a chosen expert all weights and biases have moved.
    assert len(changed) == len(chosen_in(folder)) * len(experts_in(before)) // (
        sum(block.num_experts for block in find_experts(before))
    )


def test_esft_trains_the_experts_of_a_given_file(
    configure_esft: ConfigureEsft, esft_base: Path, tmp_path: Path
) -> None:
    told = experts.run(configure_esft(None), tmp_path / "experts.json")
    tree = json.loads((tmp_path / "experts.json").read_text())
    tree["layers"]["model.layers.1.mlp.experts"]["chosen"] = [0, 2]
    (tmp_path / "mine.json").write_text(json.dumps(tree))
    given = Esft(experts=tmp_path / "mine.json", share=told.share)
    folder = esft.run(configure_esft(tmp_path / "run", esft=given, epochs=1, samples=0))
    assert chosen_in(folder) == {("model.layers.1.mlp.experts", 0), ("model.layers.1.mlp.experts", 2)}
    changed = moved(AutoModelForCausalLM.from_pretrained(esft_base), attach.load_with_adapter(folder.experts).model)
    assert {int(name.rsplit(".", 2)[1]) for name in changed} <= {0, 2} and changed


def test_esft_saves_trained_routers_too(configure_esft: ConfigureEsft, esft_base: Path, tmp_path: Path) -> None:
    folder = esft.run(configure_esft(tmp_path / "run", router=Router(mode="train"), epochs=1, samples=0))
    saved = load_file(folder.experts / "experts.safetensors")["model.layers.1.mlp.gate.weight"]
    loaded = attach.load_with_adapter(folder.path).model.get_parameter("model.layers.1.mlp.gate.weight")
    assert torch.equal(saved, loaded)
    plain = AutoModelForCausalLM.from_pretrained(esft_base).get_parameter("model.layers.1.mlp.gate.weight")
    assert not torch.equal(saved, plain)


def test_esft_saves_moved_balancing_biases_too(configure_esft: ConfigureEsft, tmp_path: Path) -> None:
    folder = esft.run(configure_esft(tmp_path / "run", router=Router(mode="bias", bias_rate=0.01), epochs=1, samples=0))
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    saved = load_file(folder.experts / "experts.safetensors")[name]
    assert saved.any()
    assert torch.equal(saved, attach.load_with_adapter(folder.path).model.get_buffer(name))


# --- stopped and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("weights", "float32"),
        pytest.param("weights", "bfloat16", marks=pytest.mark.slow),
        pytest.param("lora", "float32", marks=pytest.mark.slow),
    ],
)
def test_esft_resumed_run_is_an_unbroken_one(
    configure_esft: ConfigureEsft, esft_base: Path, stopped: Any, curve: Any, tmp_path: Path, method: Any, dtype: Any
) -> None:
    nouns = {"base": Base(model=str(esft_base), dtype=dtype), "esft": Esft(share=0.4, method=method)}
    unbroken = esft.run(configure_esft(tmp_path / "unbroken", **nouns))
    stopped(3, lambda: esft.run(configure_esft(tmp_path / "run", **nouns)))
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["status"] == "interrupted" and not folder.experts.exists()
    esft.run(EsftRun(), folder.path)
    assert curve(folder) == pytest.approx(curve(unbroken), abs=1e-6)
    ours, theirs = (load_file(run.experts / "experts.safetensors") for run in (folder, unbroken))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"n_routed_experts": 8}, {"moe_intermediate_size": 128}])
def test_esft_experts_are_refused_on_another_base(
    esft_run: RunFolder, tiny_model: Any, changes: dict[str, Any]
) -> None:
    other = loading.load(Base(model=str(tiny_model("deepseek_v3", **changes))))
    if changes == {"num_hidden_layers": 3}:  # one layer more is no hindrance, one less is
        shallow = loading.load(Base(model=str(tiny_model("deepseek_v3", "shallow", num_hidden_layers=1))))
        with pytest.raises(ModelError, match=r"no experts called model\.layers\.1\.mlp\.experts"):
            attach_experts(shallow, esft_run.experts)
        return
    with pytest.raises(ModelError, match=r"had 4 experts, .* has 8|does not go onto"):
        attach_experts(other, esft_run.experts)


@pytest.mark.parametrize("damage", ["truncated", "missing", "config"])
def test_esft_damaged_files_are_refused(esft_run: RunFolder, esft_base: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(esft_run.experts, tmp_path / "experts"))
    weights = folder / "experts.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "experts_config.json").write_text('{"format": "other"}')
    with pytest.raises(ModelError, match=r"experts\.safetensors: is damaged|experts_config\.json: cannot be used"):
        attach_experts(loading.load(Base(model=str(esft_base))), folder)


@pytest.mark.parametrize(
    ("family", "said"), [("llama", "has no routed experts"), ("qwen3_moe", r"layers: has nothing of the model's")]
)
def test_esft_refuses_the_wrong_model_before_it_is_loaded(
    configure_esft: ConfigureEsft,
    esft_run: RunFolder,
    tiny_model: Any,
    tmp_path: Path,
    monkeypatch: Any,
    family: str,
    said: str,
) -> None:
    monkeypatch.setattr(session, "load_located", lambda *given, **more: pytest.fail("it was loaded"))
    given = {} if family == "llama" else {"esft": Esft(experts=esft_run.choice_file)}
    with pytest.raises(ModelError, match=said):
        esft.run(configure_esft(tmp_path / "run", base=Base(model=str(tiny_model(family))), **given))


def test_esft_refuses_a_missing_file_before_anything_is_written(configure_esft: ConfigureEsft, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        esft.run(configure_esft(tmp_path / "run", esft=Esft(experts=tmp_path / "none.json")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": {"dtype": "float16"}}, "float16 is too narrow"),
        ({"adapter": {"rank": 4, "groups": ["routed_experts"]}}, "adapter is for esft.method=lora"),
        ({"esft": {"method": "lora"}, "adapter": {"groups": ["attention"]}}, "esft trains routed experts alone"),
        ({"esft": {"share": 0}}, "greater than 0"),
        ({"parallel": {"strategy": "fsdp2"}}, "cannot be shared out by fsdp2"),
    ],
)
def test_esft_refuses_settings_that_cannot_work(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EsftRun.model_validate(change)


def test_esft_adapter_stays_on_the_routed_experts() -> None:
    config = EsftRun.model_validate({"esft": {"method": "lora"}, "adapter": {"rank": 4}})
    assert config.adapter == Adapter(rank=4, groups=("routed_experts",))


def test_esft_lora_takes_rank_and_alpha(configure_esft: ConfigureEsft, tmp_path: Path) -> None:
    adapter = Adapter(groups=("routed_experts",), ranks={"routed_experts": 4}, alpha=8, rslora=True)
    folder = esft.run(
        configure_esft(tmp_path / "run", esft=Esft(method="lora"), adapter=adapter, max_steps=1, samples=0)
    )
    card = json.loads((folder.experts / "experts_config.json").read_text())
    assert (card["rank"], card["scale"]) == (4, 4.0)
