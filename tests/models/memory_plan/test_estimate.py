"""Bytes of a run before it runs: counted on the meta model, traced, and held against real models and real steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Adapter, Base, Parallel, Schedule, Train
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load
from dsr1_tune.models.memory import GIB
from dsr1_tune.models.memory_plan import trace as fit_trace
from dsr1_tune.models.memory_plan.base import PlannedBase, describe
from dsr1_tune.models.memory_plan.estimate import Batch, Method, Settings, estimate, plan
from dsr1_tune.models.memory_plan.trace import trace
from dsr1_tune.models.trained.full import enable_full_training
from dsr1_tune.models.trained.lora import add_lora, audit, count_trained
from dsr1_tune.moe.quantized_experts import memory_of
from tests.conftest import TinyModel, tiny_config

SMALL = Batch(2, 32, 2, 32)
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "torch_dtype": "bfloat16", "topk_group": 4,
}  # fmt: skip


def with_lora(model: Any) -> Any:
    return add_lora(model, Adapter())


def own(model: Any) -> Any:
    enable_full_training(model, ())
    return model


@pytest.fixture
def v3(tmp_path: Path) -> PlannedBase:
    (tmp_path / "config.json").write_text(json.dumps(V3))
    return describe(Base(model=str(tmp_path)))


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("is_checkpointed", [True, False])
def test_an_imagined_step_keeps_what_a_real_one_keeps(
    tiny_model: TinyModel, family: str, is_checkpointed: bool
) -> None:
    from trl.trainer.utils import add_fused_lm_head

    folder = tiny_model(family)
    imagined = trace(
        describe(Base(model=str(folder))).config, with_lora, torch.float32, 4, 96, is_checkpointed=is_checkpointed
    )
    model = with_lora(load(Base(model=str(folder), dtype="float32")).model).train()
    if is_checkpointed:
        model.activation_checkpointing_enable()
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    ids_BT = torch.randint(0, 258, (4, 96))
    with fit_trace._Alive(model, 258) as alive:
        fit_trace._supervised(model, ids_BT)
    assert imagined.peak == pytest.approx(alive.peak, rel=0.1)


@pytest.mark.parametrize("prepare", [with_lora, own])
def test_layers_that_are_not_traced_are_like_those_that_are(monkeypatch: pytest.MonkeyPatch, prepare: Any) -> None:
    config = tiny_config("deepseek_v3", num_hidden_layers=9)
    some = trace(config, prepare, torch.float32, 2, 64)
    monkeypatch.setattr(fit_trace, "MAX_TRACED_LAYERS", 9)
    every = trace(config, prepare, torch.float32, 2, 64)
    assert some.peak == pytest.approx(every.peak, rel=0.03)
    assert some.small == pytest.approx(every.small, rel=0.05)


def test_checkpointing_and_smaller_batches_take_less() -> None:
    config = tiny_config("qwen3_moe", num_hidden_layers=4)
    whole = trace(config, with_lora, torch.float32, 4, 128)
    assert trace(config, with_lora, torch.float32, 4, 128, is_checkpointed=True).peak < 0.7 * whole.peak
    assert trace(config, with_lora, torch.float32, 2, 128).peak == pytest.approx(whole.peak / 2, rel=0.15)


def test_dpo_takes_pairs(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    supervised, pairs = (estimate(base, method, Settings(), SMALL) for method in ("lora", "dpo"))
    assert pairs.parts["activations"] > 1.6 * supervised.parts["activations"]  # twice the sequences
    assert pairs.num_trained == supervised.num_trained


def test_parts_are_those_of_the_real_model(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    adapted = with_lora(load(Base(model=str(tiny_base), dtype="float32")).model)
    planned = estimate(base, "lora", Settings(dtype="float32"), SMALL)
    assert planned.num_trained == count_trained(audit(adapted))
    assert planned.parts["weights"] + planned.parts["adapter"] == pytest.approx(memory_of(adapted), rel=0.001)
    assert planned.parts["gradients"] == planned.parts["adapter"]
    assert planned.parts["optimizer"] == 2 * planned.parts["adapter"]


def test_weights_in_4_bits_are_those_of_the_real_model(tiny_base: Path) -> None:
    planned = estimate(describe(Base(model=str(tiny_base))), "qlora", Settings(), SMALL)
    loaded = load(Base(model=str(tiny_base)), quantized=True).model
    assert planned.parts["weights"] == pytest.approx(memory_of(loaded), rel=0.001)


@pytest.mark.parametrize(
    ("optimizer", "dtype", "bytes_each"),
    [("adamw", "float32", 8), ("adamw", "bfloat16", 8), ("adamw_8bit", "float32", 2.1)],
)
def test_the_optimizers_state(tiny_base: Path, optimizer: Any, dtype: str, bytes_each: float) -> None:
    settings = Settings(schedule=Schedule(optimizer=optimizer), dtype=dtype)
    planned = estimate(describe(Base(model=str(tiny_base))), "full", settings, SMALL)
    assert planned.parts["optimizer"] / planned.num_trained == pytest.approx(bytes_each, rel=0.15)
    assert planned.parts["gradients"] / planned.num_trained == (4 if dtype == "float32" else 2)


def test_adafactors_state_is_the_real_ones(tiny_base: Path) -> None:
    from transformers import Adafactor

    model = own(load(Base(model=str(tiny_base), dtype="float32")).model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = Adafactor(weights, lr=1e-3, scale_parameter=False, relative_step=False)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    held = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    settings = Settings(schedule=Schedule(optimizer="adafactor"), dtype="float32")
    planned = estimate(describe(Base(model=str(tiny_base))), "full", settings, SMALL)
    assert planned.parts["optimizer"] == pytest.approx(sum(t.numel() * 4 for t in held), rel=0.02)


def test_a_part_of_the_weights(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    some = estimate(base, "full", Settings(train=Train(only=("attention",))), SMALL)
    assert some.num_trained == base.sizes["attention"]
    with pytest.raises(ModelError, match="last:9"):
        estimate(base, "full", Settings(train=Train(only=("last:9",))), SMALL)


def test_sharing_out_divides_and_ddp_adds_buckets(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    alone = estimate(base, "full", Settings(), SMALL)
    ddp = estimate(base, "full", Settings(parallel=Parallel(processes=4)), SMALL)
    shared = estimate(base, "full", Settings(parallel=Parallel(processes=4, strategy="fsdp2")), SMALL)
    assert ddp.parts["gradients"] == 2 * alone.parts["gradients"]
    assert shared.parts["optimizer"] == alone.parts["optimizer"] // 4


def test_advice_that_is_taken_makes_it_fit(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    batch = Batch(64, 256, 1, 256)
    large = estimate(base, "lora", Settings(), batch)
    have = large.fixed + (large.needed - large.fixed) // 3
    advised = plan(base, Settings(), batch, have, ("lora",)).advice["lora"]
    assert advised.startswith("schedule.batch_size=")
    rows = int(advised.split("=")[1].split()[0])
    assert 1 <= rows < 64
    assert plan(base, Settings(), Batch(rows, 256, 1, 256), have, ("lora",)).fits("lora")


def test_what_fits_is_chosen(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    both: tuple[Method, ...] = ("lora", "qlora")
    made = plan(base, Settings(), SMALL, 64 * GIB, both)
    assert made.choice == "lora" and not made.advice
    assert plan(base, Settings(), SMALL, GIB // 8, both).choice is None


def test_a_config_alone_is_enough_for_671_b(v3: PlannedBase) -> None:
    assert v3.num_parameters == pytest.approx(671.03e9, rel=1e-4)
    assert v3.stored == "block-FP8"


@pytest.mark.slow
def test_qlora_of_671_b(v3: PlannedBase) -> None:
    made = estimate(v3, "qlora", Settings(device="cuda"), Batch(1, 1024, 1, 1024))
    assert made.parts["weights"] / GIB == pytest.approx(325, rel=0.01)  # 4.127 bits, and what is not quantized


def test_what_is_no_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        describe(Base(model=str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        describe(Base(model=str(tmp_path)))
