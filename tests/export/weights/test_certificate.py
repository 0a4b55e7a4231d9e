"""What is not certified: every way in which a merge may not be what the run trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.config import Merge
from dsr1_tune.export import merge
from dsr1_tune.export.weights.certificate import NotCertified
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import TinyRun, broken, copied, in_bf16, in_fp8, merged, quiet, refuse_merge


@pytest.mark.parametrize("change", ["other", "gone"])
def test_certificate_refuses_an_adapter_that_the_run_did_not_save(
    tiny_run: TinyRun, tmp_path: Path, change: str
) -> None:
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


def test_certificate_refuses_an_expert_whose_update_is_zero(tiny_run: TinyRun, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(n for n in tensors if n.endswith("experts.lora_B.weight"))
        tensors[name][:, 1::4] = 0  # the second of four experts
        return tensors

    refuse_merge(
        tiny_run("qwen3_moe"), tmp_path, zero, "experts.1.down_proj.weight: was to be trained, but its update is"
    )


def test_certificate_lets_an_expert_stay_that_was_saved_untrained(tiny_run: TinyRun, tmp_path: Path) -> None:
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


def test_certificate_lets_an_expert_stay_that_no_token_reached(tiny_run: TinyRun, tmp_path: Path) -> None:
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


def test_certificate_refuses_factors_packed_in_the_wrong_order(tiny_run: TinyRun, tmp_path: Path) -> None:
    def expert_major(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            if "experts." in name and name.endswith("lora_B.weight"):
                out, rank_times_experts = tensor.shape
                swapped = tensor.reshape(out, rank_times_experts // 4, 4).transpose(1, 2)
                tensors[name] = swapped.reshape(out, rank_times_experts)
        return tensors

    refuse_merge(tiny_run("qwen3_moe"), tmp_path, expert_major, "the held-out loss .*, the trained model had")


def test_certificate_refuses_targets_that_config_and_file_both_lack(tiny_run: TinyRun, tmp_path: Path) -> None:
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


def test_certificate_sees_an_update_of_zero_under_minus_zeros(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    def with_minus_zeros(base: Path) -> None:
        in_bf16(base)
        weights = load_file(base / "model.safetensors")
        for weight in weights.values():
            weight.view(-1)[0] = -0.0
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * ("q_proj.lora_B" not in name) for name, tensor in tensors.items()}

    refuse_merge(run_on(with_minus_zeros), tmp_path, zero, r"q_proj\.weight: was to be trained, but its update is zero")


def test_certificate_sees_an_update_of_zero_under_fresh_fp8_scales(
    run_on: Callable[..., RunFolder], tmp_path: Path
) -> None:
    def with_round_scales(base: Path) -> None:
        in_fp8(base)
        file = base / "model-00002-of-00002.safetensors"
        scales = {name: 2.0 ** scale.log2().ceil() for name, scale in load_file(file).items()}
        save_file(scales, file, metadata={"format": "pt"})

    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * ("o_proj.lora_B" not in name) for name, tensor in tensors.items()}

    refuse_merge(
        run_on(with_round_scales), tmp_path, zero, r"o_proj\.weight: was to be trained, but its update is zero"
    )


def test_certificate_refuses_a_zero_expert_in_a_fused_tensor(tiny_run: TinyRun, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(n for n in tensors if n.endswith("experts.lora_B.weight"))
        tensors[name][:, 1::4] = 0
        return tensors

    refuse_merge(tiny_run("gpt_oss"), tmp_path, zero, "experts.down_proj, expert 1: was to be trained")


def test_certificate_refuses_an_update_that_rounding_swallows(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    run = run_on(in_bf16)

    def faint(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * 1e-9 if ".lora_B." in name else tensor for name, tensor in tensors.items()}

    refuse_merge(run, tmp_path, faint, "is less than BF16 can tell, and is lost in the merge")


def test_certificate_says_of_an_update_that_vanishes_that_it_is_too_small(tiny_run: TinyRun, tmp_path: Path) -> None:
    """The files are not at fault, and copying them again would not help."""

    def vanishing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * 1e-30 if ".lora_B." in name else tensor for name, tensor in tensors.items()}

    with pytest.raises(NotCertified, match="is less than even float32 can tell") as caught:
        merge.run(
            broken(tiny_run("qwen3_moe"), tmp_path / "run", vanishing).path, tmp_path / "merged", Merge(), quiet()
        )
    assert "schedule.learning_rate" in caught.value.hint and not (tmp_path / "merged").exists()


def test_certificate_refuses_experts_of_which_none_has_changed(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Some experts may stay, as no token that is learned comes to them; but not all."""
    run = tiny_run("qwen3_moe", adapter={"groups": ["routed_experts"]})

    def vanishing(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor * 1e-30 if ".lora_B." in name else tensor for name, tensor in tensors.items()}

    copy = broken(run, tmp_path / "run", vanishing)
    copy.update(output_sha256=copy.hash_outputs())
    with pytest.raises(NotCertified, match="every tensor is still the base's") as caught:
        merge.run(copy.path, tmp_path / "merged", Merge(), quiet())
    assert "schedule.learning_rate" in caught.value.hint
