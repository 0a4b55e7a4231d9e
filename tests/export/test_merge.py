"""`merge`: what comes out is base and update, tensor by tensor; and what is not is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Merge
from dsr1_tune.errors import ModelError, RunError, TuneError
from dsr1_tune.export import lineage, merge
from dsr1_tune.export.weights.certificate import NotCertified
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.load import load
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.quant import fp8
from dsr1_tune.runs.folder import RunFolder
from tests.conftest import save_tiny

from .conftest import TinyRun

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral"]
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def quiet() -> Console:
    return Console(file=io.StringIO())


def merged(run: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Merge; what the certificate says."""
    merge.run(run, out, Merge(**settings), quiet())
    found = lineage.read(out)
    assert found is not None
    stage = found.stage("merge")
    assert stage is not None
    return dict(stage.facts["certificate"])


def copied(run: RunFolder, to: Path) -> RunFolder:
    """A copy of a run that may be broken."""
    shutil.copytree(run.path, to)
    return RunFolder(to)


def broken(run: RunFolder, to: Path, change: Change) -> RunFolder:
    """A copy of a run with another adapter, that says nothing of what was saved."""
    copy = copied(run, to)
    copy.update(output_sha256=None)
    file = copy.adapter / "adapter_model.safetensors"
    save_file({name: t.contiguous() for name, t in change(load_file(file)).items()}, file, metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("family", [*FAMILIES, "gpt_oss"])
def test_what_is_merged_is_what_peft_merges_bit_for_bit(tiny_run: TinyRun, family: str, tmp_path: Path) -> None:
    run = tiny_run(family)
    certificate = merged(run.path, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(run.path.parent / "base", dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(base, str(run.adapter)).merge_and_unload().state_dict()
    source, written = open_source(run.path), Checkpoint(tmp_path / "merged")
    assert set(written.names) == set(source.layout.pieces)
    for name, piece in source.layout.pieces.items():
        assert torch.equal(written.read(name), piece.of(by_peft[piece.parameter])), name
    assert certificate["outputs"]["max_difference"] <= 1e-4
    assert certificate["outputs"]["num_tokens"] > 100
    assert certificate["tensors"]["num_changed"] == certificate["tensors"]["num_targeted"] > 0


def test_all_but_the_weights_is_the_bases(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("qwen3_moe")
    merged(run.path, tmp_path / "merged")
    base = run.path.parent / "base"
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name
    assert [stage.name for stage in lineage.read(tmp_path / "merged").stages] == ["data", "train", "adapter", "merge"]


def test_a_config_says_how_its_router_scores(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("deepseek_v3")
    merged(run.path, tmp_path / "merged")
    told, base = (
        json.loads((place / "config.json").read_text()) for place in (tmp_path / "merged", run.path / "../base")
    )
    assert "scoring_func" not in base
    assert told == base | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}


@pytest.mark.parametrize(
    "method, family, settings",
    [
        ("full", "deepseek_v3", {}),
        ("full", "mixtral", {"train": {"only": ["attention", "last:1"]}}),
        ("esft", "deepseek_v3", {}),
        ("esft", "gpt_oss", {}),
        ("esft", "mixtral", {"esft": {"method": "lora"}}),
        ("qlora", "deepseek_v3", {}),
        ("lora", "qwen3_moe", {"adapter": {"groups": ["attention"], "dora": True}}),
        ("lora", "deepseek_v3", {"router": {"mode": "train"}, "adapter": {"init": "pissa", "rslora": True}}),
        ("lora", "deepseek_v3", {"router": {"mode": "bias"}, "adapter": {"ranks": {"routed_experts": 4}}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", ["no", "yes"])
def test_every_way_of_training_is_merged(
    tiny_run: TinyRun, method: str, family: str, settings: dict[str, Any], streamed: str, tmp_path: Path
) -> None:
    run = tiny_run(family, method, **settings)
    certificate = merged(run.path, tmp_path / "merged", streamed=streamed)
    assert certificate["outputs"]["max_difference"] <= 1e-4
    assert certificate["tensors"]["trained_by_part"]
    assert certificate["outputs"]["streamed"] is (streamed == "yes")
    if method != "qlora":  # which measured itself over 4 bits
        assert certificate["loss"]["merged"] == pytest.approx(certificate["loss"]["run"], abs=1e-3)


def test_qlora_says_into_what_it_is_merged(tiny_run: TinyRun, tmp_path: Path) -> None:
    console = quiet()
    merge.run(tiny_run("deepseek_v3", "qlora").path, tmp_path / "merged", Merge(), console)
    assert "into the same base in 16 bits" in console.file.getvalue()  # type: ignore[attr-defined]
    assert {Checkpoint(tmp_path / "merged").spec(n).dtype for n in Checkpoint(tmp_path / "merged").names} == {"F32"}


def in_bf16(base: Path) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)


@pytest.fixture(scope="module")
def run_on(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, sums: Path) -> Callable[..., RunFolder]:
    """A run of lora on a base that was changed after it was made."""
    from dsr1_tune.config import LoraRun
    from dsr1_tune.train import lora

    def run(change: Callable[[Path], None], **sizes: Any) -> RunFolder:
        folder = tmp_path_factory.mktemp("run")
        base = save_tiny(folder / "base", tiny_tokenizer, "deepseek_v3", **sizes)
        change(base)
        tree = {
            "data": {"files": [str(sums)]},
            "base": {"model": str(base)},
            "schedule": {"max_steps": 3, "learning_rate": 0.02, "max_tokens": 128},
            "samples": 0,
            "out": str(folder / "run"),
        }
        return lora.run(LoraRun.model_validate(tree), console=quiet())

    return run


def test_a_base_in_bf16_is_rounded_once(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_on(in_bf16)
    certificate = merged(run.path, tmp_path / "merged")
    assert certificate["dtype"] == "BF16"
    assert certificate["outputs"]["max_difference"] <= certificate["outputs"]["bound"] <= 2e-4
    assert 0 < certificate["outputs"]["mean_kl"] < 1e-3
    base = AutoModelForCausalLM.from_pretrained(run.path.parent / "base", dtype=torch.float32)
    exact = PeftModel.from_pretrained(base, str(run.adapter)).merge_and_unload().state_dict()
    written, layout = Checkpoint(tmp_path / "merged"), open_source(run.path).layout
    for name, piece in layout.pieces.items():
        want = piece.of(exact[piece.parameter]).to(written.read(name).dtype)
        assert torch.equal(written.read(name), want), name


def in_fp8(base: Path) -> None:
    """As DeepSeek stores its models, with blocks of 32, some of which overhang, and scales in a file of their own."""
    weights = load_file(base / "model.safetensors")
    stored, scales = {}, {}
    for name, weight in weights.items():
        if weight.dim() == 2 and "proj" in name:
            stored[name], scales[f"{name}_scale_inv"] = fp8.to_blocks(weight, (48, 32))
        else:
            stored[name] = weight.bfloat16() if "correction" not in name else weight
    (base / "model.safetensors").unlink()
    save_file(stored, base / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    save_file(scales, base / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    index = dict.fromkeys(stored, "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(scales, "model-00002-of-00002.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [48, 32], "fmt": "e4m3"}
    (base / "config.json").write_text(json.dumps(config))


def test_a_block_fp8_base_stays_one_or_becomes_bfloat16(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_on(in_fp8)
    base = Checkpoint(run.path.parent / "base")
    merged(run.path, tmp_path / "fp8")
    kept = Checkpoint(tmp_path / "fp8")
    assert {name: kept.spec(name) for name in kept.names} == {name: base.spec(name) for name in base.names}
    untouched = "model.embed_tokens.weight"
    assert torch.equal(kept.read(untouched), base.read(untouched))
    certificate = merged(run.path, tmp_path / "bf16", fp8="bfloat16")
    plain = Checkpoint(tmp_path / "bf16")
    assert not any(name.endswith("_scale_inv") for name in plain.names)
    assert "quantization_config" not in json.loads((tmp_path / "bf16" / "config.json").read_text())
    assert certificate["outputs"]["mean_kl"] < 1e-3
    from dsr1_tune.config import Base

    text = torch.arange(40)[None]
    with torch.no_grad():
        one = load(Base(model=str(tmp_path / "fp8"), dtype="float32")).model(text).logits
        two = load(Base(model=str(tmp_path / "bf16"), dtype="float32")).model(text).logits
    # Float8 keeps three binary digits behind the first.
    assert float((one - two).norm() / two.norm()) < 0.2


def test_further_prediction_layers_come_along(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    def with_more(base: Path) -> None:
        weights = load_file(base / "model.safetensors")
        weights["model.layers.2.eh_proj.weight"] = torch.randn(64, 128)
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    run = run_on(with_more)
    merged(run.path, tmp_path / "merged")
    name = "model.layers.2.eh_proj.weight"
    assert torch.equal(Checkpoint(tmp_path / "merged").read(name), Checkpoint(run.path.parent / "base").read(name))


# --- what is not certified -------------------------------------------------------------------------------------------


def no_longer(run: RunFolder, tmp_path: Path, change: Change, expected: str) -> None:
    """A merge of a changed adapter is refused and leaves nothing."""
    copy = broken(run, tmp_path / "run", change)
    with pytest.raises(ModelError, match=expected):
        merge.run(copy.path, tmp_path / "merged", Merge(), quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("change", ["other", "gone"])
def test_what_is_not_what_the_run_saved_is_not_certified(tiny_run: TinyRun, tmp_path: Path, change: str) -> None:
    copy = copied(tiny_run("qwen3_moe"), tmp_path / "run")
    file = copy.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("experts.lora_B.weight"))
    tensors[name][:, 1::4] = 0
    save_file(tensors, file if change == "other" else copy.path / "elsewhere.safetensors", metadata={"format": "pt"})
    if change == "gone":
        copy.update(output_sha256={**copy.manifest()["output_sha256"], "adapter/more.safetensors": "0"})
    expected = f"{'adapter_model' if change == 'other' else 'more'}.safetensors: is not what the run saved"
    with pytest.raises(NotCertified, match=expected):
        merge.run(copy.path, tmp_path / "merged", Merge(), quiet())
    assert not (tmp_path / "merged").exists()


def test_an_expert_whose_rows_are_zero_is_not_certified(tiny_run: TinyRun, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(n for n in tensors if n.endswith("experts.lora_B.weight"))
        tensors[name][:, 1::4] = 0  # the second of four experts
        return tensors

    no_longer(tiny_run("qwen3_moe"), tmp_path, zero, "experts.1.down_proj.weight: was to be trained, but its update is")


def test_an_expert_that_was_saved_untrained_may_stay(tiny_run: TinyRun, tmp_path: Path) -> None:
    """As one in the last layer, to which only tokens come that nothing is learned from."""

    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            if "layers.1.mlp.experts" in name and name.endswith("lora_B.weight"):
                tensor[:, 1::4] = 0
        return tensors

    copy = broken(tiny_run("qwen3_moe"), tmp_path / "run", zero)
    copy.update(output_sha256=copy.hash_outputs())
    evaluation = copy.evaluation()
    copy.eval_file.unlink()
    copy.write_evaluation(before=evaluation["before"])
    assert len(merged(copy.path, tmp_path / "merged")["tensors"]["never_reached"]) == 3


def test_an_expert_that_no_token_reached_may_stay(tiny_run: TinyRun, tmp_path: Path) -> None:
    import numpy as np

    run = tiny_run("qwen3_moe")

    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            if "layers.0.mlp.experts" in name and name.endswith("lora_B.weight"):
                tensor[:, 1::4] = 0
        return tensors

    copy = broken(run, tmp_path / "run", zero)
    tables = dict(np.load(copy.path / "experts_load.npz"))
    tables["training_load"][0, 1] = 0
    np.savez(copy.path / "experts_load.npz", **tables)
    # Whether the loss is the run's is another question, which this adapter would not pass.
    evaluation = copy.evaluation()
    copy.eval_file.unlink()
    copy.write_evaluation(before=evaluation["before"])
    certificate = merged(copy.path, tmp_path / "merged")
    assert len(certificate["tensors"]["never_reached"]) == 3


def test_factors_that_are_packed_the_wrong_way_round_are_not_certified(tiny_run: TinyRun, tmp_path: Path) -> None:
    def expert_major(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            if "experts." in name and name.endswith("lora_B.weight"):
                out, rank_times_experts = tensor.shape
                swapped = tensor.reshape(out, rank_times_experts // 4, 4).transpose(1, 2)
                tensors[name] = swapped.reshape(out, rank_times_experts)
        return tensors

    no_longer(tiny_run("qwen3_moe"), tmp_path, expert_major, "held-out loss is .*, the trained model had")


def test_missing_targets_are_not_certified(tiny_run: TinyRun, tmp_path: Path) -> None:
    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.q_proj" not in name}

    no_longer(tiny_run("qwen3_moe"), tmp_path, without, "2 tensors of the adapter are missing, such as .*q_proj")


def test_targets_that_config_and_file_both_lack_are_not_certified(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("qwen3_moe")

    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if "q_proj" not in name}

    copy = broken(run, tmp_path / "run", without)
    file = copy.adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    config["target_modules"].remove("q_proj")
    file.write_text(json.dumps(config))
    with pytest.raises(NotCertified, match="weights of its attention, the merge changed"):
        merge.run(copy.path, tmp_path / "merged", Merge(), quiet())
    assert not (tmp_path / "merged").exists()


def test_tensors_that_belong_nowhere_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    def with_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)}

    no_longer(tiny_run("qwen3_moe"), tmp_path, with_more, "1 tensors of the adapter have no place in the base")


def test_minus_zeros_in_the_base_do_not_hide_an_update_of_zero(
    run_on: Callable[..., RunFolder], tmp_path: Path
) -> None:
    def with_minus_zeros(base: Path) -> None:
        in_bf16(base)
        weights = load_file(base / "model.safetensors")
        for weight in weights.values():
            weight.view(-1)[0] = -0.0
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * ("q_proj.lora_B" not in name) for name, tensor in tensors.items()}

    no_longer(run_on(with_minus_zeros), tmp_path, zero, r"q_proj\.weight: was to be trained, but its update is zero")


def test_fresh_fp8_scales_do_not_hide_an_update_of_zero(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    def with_round_scales(base: Path) -> None:
        in_fp8(base)
        file = base / "model-00002-of-00002.safetensors"
        scales = {name: 2.0 ** scale.log2().ceil() for name, scale in load_file(file).items()}
        save_file(scales, file, metadata={"format": "pt"})

    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * ("o_proj.lora_B" not in name) for name, tensor in tensors.items()}

    no_longer(run_on(with_round_scales), tmp_path, zero, r"o_proj\.weight: was to be trained, but its update is zero")


def test_an_expert_of_zeros_is_found_where_all_lie_in_one_tensor(tiny_run: TinyRun, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(n for n in tensors if n.endswith("experts.lora_B.weight"))
        tensors[name][:, 1::4] = 0
        return tensors

    no_longer(tiny_run("gpt_oss"), tmp_path, zero, "experts.down_proj, expert 1: was to be trained")


def test_an_update_that_rounding_swallows_is_not_certified(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_on(in_bf16)

    def faint(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * 1e-9 if ".lora_B." in name else tensor for name, tensor in tensors.items()}

    no_longer(run, tmp_path, faint, "is less than BF16 can tell, and is lost in the merge")


# --- what a user may do wrong ----------------------------------------------------------------------------------------


def test_what_is_there_already_stays(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("keep")
    with pytest.raises(RunError, match="is already there"):
        merge.run(tiny_run().path, tmp_path / "merged", Merge(), quiet())
    assert (tmp_path / "merged" / "mine").read_text() == "keep"


@pytest.mark.parametrize("what", ["nothing", "base", "unfinished", "cut off"])
def test_what_cannot_be_merged_says_why(tiny_run: TinyRun, what: str, tmp_path: Path) -> None:
    run = tiny_run()
    path, expected = tmp_path / "gone", "is no finished run and no adapter"
    if what == "base":
        path = run.path.parent / "base"
    if what == "unfinished":
        path, expected = copied(run, tmp_path / "run").path, "is a run that is not finished"
        RunFolder(path).update(status="interrupted")
    if what == "cut off":
        path, expected = copied(run, tmp_path / "run").path, "is damaged: it is cut off"
        file = path / "adapter" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TuneError, match=expected):
        merge.run(path, tmp_path / "merged", Merge(), quiet())
    assert not (tmp_path / "merged").exists()


def test_a_neighbours_unfinished_output_stays(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = tmp_path / ".merged.v2.abcdefgh.part"
    mine = tmp_path / ".merged.abcdefgh.part"
    for left in (other, mine):
        left.mkdir()
    merge.run(tiny_run("qwen3_moe").path, tmp_path / "merged", Merge(), quiet())
    assert other.exists() and not mine.exists()


def test_a_mount_or_the_folder_one_is_in_is_no_place_for_output(
    tiny_run: TinyRun, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="cannot be replaced"):
        merge.run(tiny_run("qwen3_moe").path, Path(), Merge(), quiet())


def test_tied_embeddings_that_are_stored_twice_stay_one(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    from dsr1_tune.config import FullRun
    from dsr1_tune.train import full

    def stored_twice(base: Path) -> None:
        weights = load_file(base / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    lora = run_on(stored_twice, tie_word_embeddings=True)
    tree = lora.manifest()["config"] | {"out": str(tmp_path / "run")}
    tree.pop("adapter")
    run = full.run(FullRun.model_validate(tree), console=quiet())
    merged(run.path, tmp_path / "merged")
    written = Checkpoint(tmp_path / "merged")
    head, table = written.read("lm_head.weight"), written.read("model.embed_tokens.weight")
    assert torch.equal(head, table)
    assert not torch.equal(table, Checkpoint(lora.path.parent / "base").read("model.embed_tokens.weight"))


def test_an_adapter_without_its_run_is_merged_too(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run("mixtral").adapter, tmp_path / "adapter")
    certificate = merged(tmp_path / "adapter", tmp_path / "merged")
    assert certificate["loss"] is None
    assert certificate["tensors"]["trained_by_part"] is None
    assert certificate["outputs"]["max_difference"] <= 1e-4
