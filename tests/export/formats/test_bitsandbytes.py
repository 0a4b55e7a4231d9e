"""NF4 and int8 in bitsandbytes' layout: held as stored, read by their own library, refused where they do not fit."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.errors import ModelError
from dsr1_tune.export import lineage
from dsr1_tune.export.weights.as_loaded import check_logits
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.weights import load_bnb
from dsr1_tune.moe import expert_lora, expert_rows
from dsr1_tune.moe.anatomy import find_experts
from dsr1_tune.moe.expert_rows import RoutedRows
from dsr1_tune.moe.quantized_experts import audit_bits, memory_of
from tests.export.conftest import IDS, WORST, loaded, logits, quantized
from tests.families import save_family


def held_matrices(module: Any, name: str) -> Tensor:
    from dsr1_tune.quant.nf4 import stored_weight

    return stored_weight(module, name).matrices(slice(None))  # type: ignore[union-attr]


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_bitsandbytes_takes_experts_stored_in_one_tensor(tiny_model: Any, tmp_path: Path, to: str) -> None:
    """gpt-oss: (E, D, 2I), gate and up in turn, with biases, which stay."""
    source = tiny_model("gpt_oss")
    folder, _ = quantized(source, tmp_path / "out", to)
    model = loaded(folder)
    # NF4 blocks and rows of int8 lie in the tensor as it is stored, so rounding it there is the same
    plain = loaded(source)
    with torch.no_grad():
        for block, held in zip(find_experts(plain), find_experts(model), strict=True):
            for name in block.parameters:
                back = held_matrices(held.module, name)
                weight = getattr(block.module, name)
                assert (back - weight).norm() / weight.norm() < WORST[to]
                weight.copy_(back)
    assert torch.allclose(logits(model), logits(plain), atol=1e-5)


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_bitsandbytes_is_held_in_few_bits_and_answers_in_any_dtype(tiny_model: Any, tmp_path: Path, to: str) -> None:
    # wide enough for weights to outweigh the rest
    source = tiny_model("qwen3_moe", moe_intermediate_size=512, num_experts=8)
    folder, _ = quantized(source, tmp_path / "out", to)
    want, full = logits(loaded(folder)), memory_of(loaded(source))
    assert memory_of(loaded(folder)) < {"nf4": 0.3, "int8": 0.4}[to] * full
    got = logits(loaded(folder, dtype="bfloat16"))
    assert got.dtype == torch.bfloat16 and (got.float() - want).norm() / want.norm() < 0.1
    # the loader that chat and compare use, and a conversation
    answer = load_with_adapter(folder).model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert answer.shape == (1, 25)


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_bitsandbytes_gives_the_same_where_a_gpu_groups_its_rows(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """Grouped products over some experts at a time give the CPU's numbers."""
    folder, _ = quantized(tiny_model("deepseek_v3"), tmp_path / "out", to)
    experts = find_experts(loaded(folder))[0].module
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    index, weight = torch.tensor([[0, 3]] * 15 + [[1, 3]]), torch.full((16, 2), 0.5)
    want = expert_lora.apply_experts(experts, x, index, weight, {})
    (want_dx,) = torch.autograd.grad(want.square().sum(), x)

    class Elsewhere(Tensor):
        __torch_function__ = torch._C._disabled_torch_function_impl

        @property
        def device(self) -> torch.device:
            return torch.device("cuda")

    sort = RoutedRows.sort.__func__  # type: ignore[attr-defined]
    there = classmethod(lambda cls, i, num_experts: sort(cls, i.as_subclass(Elsewhere), num_experts))
    monkeypatch.setattr(RoutedRows, "sort", there)
    monkeypatch.setattr(expert_rows, "PORTION_BYTES", 3 * 64 * 64 * 4)
    got = expert_lora.apply_experts(experts, x, index, weight, {})
    (got_dx,) = torch.autograd.grad(got.square().sum(), x)
    assert torch.allclose(got, want, atol=1e-4) and torch.allclose(got_dx, want_dx, atol=1e-3)


def test_bitsandbytes_folder_is_not_saved_in_another_layout(tiny_base: Path, tmp_path: Path) -> None:
    folder, _ = quantized(tiny_base, tmp_path / "out", "nf4")
    with pytest.raises(ValueError, match="serializ"):
        loaded(folder).save_pretrained(tmp_path / "again")


def test_nf4_folder_is_trained_over_by_qlora_alone(tiny_base: Path, tmp_path: Path, sums: Path) -> None:
    from dsr1_tune import config as configs
    from dsr1_tune.train import lora, qlora

    nf4, _ = quantized(tiny_base, tmp_path / "nf4", "nf4")
    int8, _ = quantized(tiny_base, tmp_path / "int8", "int8")
    tree = {"data": {"files": [str(sums)]}, "schedule": {"max_steps": 1, "max_tokens": 128}, "samples": 0}

    def settings(kind: Any, folder: Path) -> Any:
        return kind.model_validate({**tree, "base": {"model": str(folder)}, "out": str(tmp_path / "run")})

    quiet = Console(file=io.StringIO())
    with pytest.raises(ModelError, match="stored in 4 bits") as refused:
        lora.run(settings(configs.LoraRun, nf4), console=quiet)
    assert "qlora" in refused.value.hint
    with pytest.raises(ModelError, match="stored in 8 bits"):
        qlora.run(settings(configs.QloraRun, int8), console=quiet)
    assert not (tmp_path / "run").exists()
    run = qlora.run(settings(configs.QloraRun, nf4), console=quiet)
    assert (run.adapter / "adapter_model.safetensors").is_file()
    answered = logits(load_with_adapter(run.path).model)
    assert torch.isfinite(answered).all()
    bits = {line.part: line for line in audit_bits(loaded(nf4, quantized=True))}
    assert bits["routed_experts"].share == 1 and 0.05 < bits["routed_experts"].worst_error < 0.11


def test_nf4_of_a_dense_model_is_read_by_transformers_alone(tiny_model: Any, tmp_path: Path) -> None:
    folder, _ = quantized(tiny_model("llama"), tmp_path / "out", "nf4", all=True)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    want = logits(loaded(folder))
    assert (logits(plain) - want).norm() / want.norm() < 0.02  # its products are in bfloat16


def test_nf4_refuses_experts_that_do_not_divide_and_int8_takes_them(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be held in nf4, such as .*experts.0.down_proj.weight \(60 × 33\)"):
        quantized(tiny_model("qwen3_moe", hidden_size=60, moe_intermediate_size=33), tmp_path / "out", "nf4")
    assert not (tmp_path / "out").exists()
    odd = tiny_model("qwen3_moe", name="odd", hidden_size=60, moe_intermediate_size=33)
    folder, _ = quantized(odd, tmp_path / "int8", "int8", all=True)
    assert torch.isfinite(logits(loaded(folder))).all()
    with safe_open(folder / "model.safetensors", framework="pt") as stored:  # odd sizes, and yet aligned
        assert all(stored.get_tensor(name) is not None for name in stored.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weights, name: weights.pop(f"{name}.nested_absmax"), "nested_absmax is missing"),
        (lambda weights, name: weights.update({f"{name}.absmax": weights[f"{name}.absmax"][:-1]}), "63 numbers"),
        (
            lambda weights, name: weights.update(
                {f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(b"{}"), dtype=torch.uint8)}
            ),
            "quant_state cannot be used",
        ),
    ],
)
def test_nf4_folder_that_is_damaged_is_refused_by_name(tiny_base: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder, _ = quantized(tiny_base, tmp_path / "out", "nf4")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    change(weights, name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said) as refused:
        loaded(folder)
    assert name in refused.value.message


@pytest.fixture(scope="module")
def alternating(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """Inkling 2 stores one tensor for all experts, in which the rows of gate and up alternate."""
    return save_family(tmp_path_factory.mktemp("inkling2") / "base", tiny_tokenizer, "inkling2_text")


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_bitsandbytes_holds_alternating_rows_of_gate_and_up_as_the_model_does(
    alternating: Path, tmp_path: Path, to: str
) -> None:
    folder, said = quantized(alternating, tmp_path / "out", to)
    assert "64 tokens the logits are those of its weights multiplied out" in said
    plain, model = loaded(alternating), loaded(folder)
    for block, held in zip(find_experts(plain), find_experts(model), strict=True):
        for name in block.parameters:
            weight = getattr(block.module, name)
            assert (held_matrices(held.module, name) - weight).norm() / weight.norm() < WORST[to]
    assert (logits(model) - logits(plain)).norm() / logits(plain).norm() < {"nf4": 0.7, "int8": 0.1}[to]


@pytest.mark.parametrize("to", ["nf4", "int8"])
def test_bitsandbytes_is_refused_where_its_rows_would_be_loaded_to_other_places(
    alternating: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """As if the loader took every tensor for the parameter itself: each matrix is as near as before, none is right."""
    monkeypatch.setattr(load_bnb, "is_plain", lambda piece: True)
    with pytest.raises(ModelError, match="as it is loaded the quantized model is another than its weights"):
        quantized(alternating, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_bitsandbytes_of_experts_whose_blocks_cross_rows_is_proved_too(tiny_model: Any, tmp_path: Path) -> None:
    folder, said = quantized(tiny_model("qwen3_moe", moe_intermediate_size=96), tmp_path / "out", "nf4")
    assert "logits are those of its weights multiplied out" in said
    stage = lineage.read(folder).stage("quantize")  # type: ignore[union-attr]
    assert stage is not None and stage.facts["as_loaded"]["max_difference"] < 1e-3
    assert all(group["worst_error"] < WORST["nf4"] for group in stage.facts["groups"])


def test_logits_that_are_close_pass_and_others_do_not() -> None:
    want = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    check_logits(want, want + 1e-3 * noise, "m")
    one_token = want.clone()
    one_token[3] = noise[3]  # went to another expert
    check_logits(want, one_token, "m")
    for other in (noise, want + 0.1 * noise, torch.full_like(want, float("nan"))):
        with pytest.raises(ModelError, match=r"^m: as it is loaded"):
            check_logits(want, other, "m")
