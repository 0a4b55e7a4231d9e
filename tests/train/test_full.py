"""`full` end to end on tiny models: what it trains and leaves alone, what it saves, and how it goes on when stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base, Data, FullRun, Router, Schedule, Train
from dsr1_tune.data.encode.example import encode_all
from dsr1_tune.data.prepare import prepare
from dsr1_tune.errors import ModelError, TuneError
from dsr1_tune.models.trained import attach
from dsr1_tune.moe.anatomy import Anatomy
from dsr1_tune.runs import session
from dsr1_tune.runs.evaluate import held_out_loss
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import optimizers
from dsr1_tune.train import full

NUM_STEPS = 8  # 27 records, two epochs in batches of 8

Configure = Callable[..., FullRun]


@pytest.fixture(scope="module")
def configure(tiny_base: Path, sums: Path) -> Configure:
    """configure(out, epochs=1) is a run of two epochs; keywords change its schedule, or are whole nouns."""

    def configure_(out: Path | None, **changes: Any) -> FullRun:
        nouns = {name: changes.pop(name) for name in list(changes) if name in FullRun.model_fields}
        schedule = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 8, "save_steps": 100, "max_tokens": 128}
        given = {
            "data": Data(files=(sums,)),
            "base": Base(model=str(tiny_base)),
            "schedule": Schedule(**{**schedule, "gradient_checkpointing": False, **changes}),
            "samples": 1,
            "sample_tokens": 4,
        }
        return FullRun(out=out, **{**given, **nouns})

    return configure_


@pytest.fixture(scope="module")
def done(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """One unbroken run, for all tests that only look at it."""
    return full.run(configure(tmp_path_factory.mktemp("runs") / "done"))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """By their names in memory."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()


def moved(before: Path, after: Path) -> set[str]:
    old, new = weights_of(before), weights_of(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name].to(new[name].dtype), new[name])}


# --- what it leaves --------------------------------------------------------------------------------------------------


def test_full_lowers_the_held_out_loss_and_records_it(done: RunFolder) -> None:
    metrics, told = done.manifest()["metrics"], done.evaluation()
    assert told["after"]["loss"] < 0.9 * told["before"]["loss"]
    assert (metrics["loss_before"], metrics["loss_after"]) == (told["before"]["loss"], told["after"]["loss"])
    assert metrics["num_steps"] == NUM_STEPS
    assert metrics["reloaded_loss"] == pytest.approx(metrics["loss_after"], abs=1e-5)
    assert done.manifest()["status"] == "finished" and done.manifest()["command"] == "full"


def test_full_moves_every_weight_but_the_routers(done: RunFolder, tiny_base: Path) -> None:
    part_of = Anatomy(AutoModelForCausalLM.from_pretrained(tiny_base))
    left = weights_of(tiny_base).keys() - moved(tiny_base, done.model)
    assert {part_of(name) for name in left} == {"router"}
    assert {name.rpartition(".")[2] for name in left} == {"weight", "e_score_correction_bias"}
    for line in done.manifest()["metrics"]["coverage"]:
        wanted = 0 if line["part"] == "router" else line["num_base"]
        assert line["num_trained"] == line["num_adapted"] == wanted
        assert line["num_frozen"] == line["num_base"] - wanted


def test_full_model_loads_with_transformers(done: RunFolder, sums: Path) -> None:
    files = {path.name for path in done.model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
    model = AutoModelForCausalLM.from_pretrained(done.model).eval()
    assert model.config.use_cache
    # On disk the experts stand one by one, as everywhere.
    assert "model.layers.1.mlp.experts.3.down_proj.weight" in load_file(done.model / "model.safetensors")


def test_full_run_folder_loads_as_the_trained_model(done: RunFolder) -> None:
    loaded = attach.load_with_adapter(done.path)
    kept = prepare(Data(files=(done.data / "eval.jsonl",)))
    examples, _ = encode_all(kept.records, loaded.tokenizer, 128)
    loss = held_out_loss(loaded.model, examples, loaded.tokenizer.pad_token_id).loss
    assert loss == pytest.approx(done.evaluation()["after"]["loss"], abs=1e-5)


def test_full_with_the_same_seed_gives_the_same_model(configure: Configure, done: RunFolder, tmp_path: Path) -> None:
    again = full.run(configure(tmp_path / "run"))
    assert not moved(done.model, again.model)


# --- stopped and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "dtype"),
    [
        (3, "float32"),
        pytest.param(4, "float32", marks=pytest.mark.slow),
        pytest.param(3, "bfloat16", marks=pytest.mark.slow),
    ],
    ids=["within-epoch", "epoch-end", "bfloat16"],
)
def test_full_resumed_run_is_an_unbroken_one(
    configure: Configure,
    done: RunFolder,
    tiny_base: Path,
    stopped: Any,
    curve: Any,
    tmp_path: Path,
    step: int,
    dtype: Any,
) -> None:
    base = Base(model=str(tiny_base), dtype=dtype)
    unbroken = done if dtype == "float32" else full.run(configure(tmp_path / "unbroken", base=base))
    stopped(step, lambda: full.run(configure(tmp_path / "run", base=base)))
    folder = RunFolder(tmp_path / "run")
    assert folder.manifest()["status"] == "interrupted" and not folder.model.exists()
    full.run(FullRun(), folder.path)
    assert curve(folder) == pytest.approx(curve(unbroken), abs=1e-6)
    assert folder.evaluation()["after"]["loss"] == pytest.approx(unbroken.evaluation()["after"]["loss"], abs=1e-6)
    assert not moved(unbroken.model, folder.model)


@pytest.mark.slow
def test_full_run_resumes_from_another_working_directory(
    configure: Configure, tiny_base: Path, stopped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_base.parent)
    stopped(2, lambda: full.run(configure(tmp_path / "run", base=Base(model=tiny_base.name), samples=0)))
    monkeypatch.chdir(tmp_path)
    folder = full.run(FullRun(), Path("run"))
    assert folder.manifest()["status"] == "finished"


def test_full_checkpoint_holds_what_is_trained(configure: Configure, tmp_path: Path) -> None:
    folder = full.run(configure(tmp_path / "run", train=Train(only=("shared_experts",)), max_steps=2, samples=0))
    with safe_open(folder.checkpoints / "checkpoint-2" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    buffers = {name for name in names if name.endswith("e_score_correction_bias")}
    assert names - buffers and all(".shared_experts." in name for name in names - buffers)


# --- which weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "pieces"),
    [
        (("attention",), (".self_attn.",)),
        (("routed_experts",), (".mlp.experts.",)),
        pytest.param(("last:1",), ("model.layers.1.",), marks=pytest.mark.slow),
        pytest.param(("embeddings", "norms"), ("embed_tokens", "lm_head", "norm"), marks=pytest.mark.slow),
        pytest.param(("attention", "last:1"), ("model.layers.1.self_attn.",), marks=pytest.mark.slow),
    ],
    ids=lambda value: "+".join(value),
)
def test_full_with_only_moves_these_weights_alone(
    configure: Configure, tiny_base: Path, tmp_path: Path, only: tuple[str, ...], pieces: tuple[str, ...]
) -> None:
    folder = full.run(configure(tmp_path / "run", train=Train(only=only), epochs=1, samples=0))
    changed = moved(tiny_base, folder.model)
    assert changed and all(any(piece in name for piece in pieces) for name in changed)
    assert all(any(piece in name for name in changed) for piece in pieces)
    assert not any(".mlp.gate." in name for name in changed)


def test_full_trains_routers_where_configured(configure: Configure, tiny_base: Path, tmp_path: Path) -> None:
    nouns = {"train": Train(only=("shared_experts",)), "router": Router(mode="train")}
    folder = full.run(configure(tmp_path / "run", epochs=1, samples=0, **nouns))
    changed = moved(tiny_base, folder.model)
    assert "model.layers.1.mlp.gate.weight" in changed
    assert {name for name in changed if ".shared_experts." not in name} == {"model.layers.1.mlp.gate.weight"}


@pytest.mark.parametrize(
    ("family", "only", "said"),
    [
        ("mixtral", ("attention", "shared_experts"), "train.only: the model has no shared_experts"),
        ("llama", ("routed_experts",), "train.only: the model has no routed_experts"),
        ("deepseek_v3", ("dense_ffn", "last:1"), "the model has no dense_ffn in its last 1 layer"),
        ("deepseek_v3", ("last:3",), "last:3: the model has 2 layers"),
    ],
)
def test_full_refuses_what_the_model_does_not_have_before_it_is_loaded(
    configure: Configure,
    tiny_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    only: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.setattr(session, "load_located", lambda *given, **more: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=said):
        full.run(configure(tmp_path / "run", base=Base(model=str(tiny_model(family))), train=Train(only=only)))


# --- number formats and families -------------------------------------------------------------------------------------


def test_full_rounds_bfloat16_weights_stochastically_and_saves_them_so(
    configure: Configure, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded: list[int] = []
    round_ = optimizers.round_to_bfloat16
    monkeypatch.setattr(
        optimizers, "round_to_bfloat16", lambda exact, noise: (rounded.append(1), round_(exact, noise))[1]
    )
    base = Base(model=str(tiny_base), dtype="bfloat16")
    # So small that rounded to nearest hardly a weight would move.
    folder = full.run(configure(tmp_path / "run", base=base, learning_rate=1e-5, samples=0))
    assert rounded
    stored = load_file(folder.model / "model.safetensors")
    assert {weight.dtype for name, weight in stored.items() if name.endswith("proj.weight")} == {torch.bfloat16}
    rounded.clear()
    nearest = full.run(
        configure(tmp_path / "nearest", base=base, learning_rate=1e-5, samples=0, train=Train(rounding="nearest"))
    )
    assert not rounded

    def num_moved(run: RunFolder) -> int:
        old, new = weights_of(tiny_base), weights_of(run.model)
        return sum(int((old[name].to(new[name].dtype) != new[name]).sum()) for name in new)

    assert num_moved(folder) > 2 * num_moved(nearest)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("llama", {}, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", {"tie_word_embeddings": True}, marks=pytest.mark.slow),
        ("gpt_oss", {}),
        pytest.param("mixtral", {}, marks=pytest.mark.slow),
    ],
    ids=["llama-tied", "qwen3_moe-tied", "gpt_oss", "mixtral"],
)
def test_full_trains_other_families(
    configure: Configure, tiny_model: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    start = tiny_model(family, **changes)
    folder = full.run(configure(tmp_path / "run", base=Base(model=str(start)), samples=0))
    told = folder.evaluation()
    assert told["after"]["loss"] < 0.95 * told["before"]["loss"]
    trained = AutoModelForCausalLM.from_pretrained(folder.model)
    if changes.get("tie_word_embeddings") or family == "llama":
        assert trained.lm_head.weight is trained.model.embed_tokens.weight
        assert "model.embed_tokens.weight" in moved(start, folder.model)
        assert "lm_head.weight" not in load_file(folder.model / "model.safetensors")


@pytest.mark.parametrize("change", [{"base": {"dtype": "float16"}}, {"train": {"only": ["routers"]}}])
def test_full_refuses_settings_that_cannot_work(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"float16 is too narrow|routers is none of"):
        FullRun.model_validate(change)


def test_full_refuses_a_quantized_base(configure: Configure, tiny_model: Any, tmp_path: Path) -> None:
    import json

    start = tiny_model("qwen3_moe")
    config = json.loads((start / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (start / "config.json").write_text(json.dumps(config))
    with pytest.raises(TuneError, match="quantized"):
        full.run(configure(tmp_path / "run", base=Base(model=str(start))))
    assert not (tmp_path / "run").exists()


def test_full_run_that_changes_nothing_is_not_finished(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="training has changed nothing"):
        full.run(configure(tmp_path / "run", max_steps=2, learning_rate=1e-300))
    assert RunFolder(tmp_path / "run").manifest()["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()
