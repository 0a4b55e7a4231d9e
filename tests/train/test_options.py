"""Options of optimizer, adapter and router through whole runs: each takes hold, and a stopped run goes on the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from dsr1_tune.config import (
    Adapter,
    Base,
    ConfigSection,
    Data,
    FullRun,
    LoraRun,
    QloraRun,
    Router,
    Schedule,
    Sequences,
    Train,
)
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.attach import attach_adapter
from dsr1_tune.moe.anatomy import find_routers
from dsr1_tune.runs import open_session, session
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.runs.trainer import trainer
from dsr1_tune.train import full, lora, qlora

Configure = Callable[..., LoraRun]


@pytest.fixture
def configure(tiny_model: Any, sums: Path, tmp_path: Path) -> Configure:
    """configure("run", "qwen3_moe", neftune_noise_alpha=5) is a run of four steps.

    Keywords change its schedule or are nouns.
    """

    def configure_(name: str, family: str = "deepseek_v3", kind: type = LoraRun, **changes: Any) -> Any:
        nouns = {name: changes.pop(name) for name in list(changes) if isinstance(changes[name], ConfigSection)}
        schedule = {"max_steps": 4, "learning_rate": 1e-2, "batch_size": 4, "save_steps": 100, "max_tokens": 128}
        given = {
            "data": Data(files=(sums,)),
            "base": Base(model=str(tiny_model(family))),
            "schedule": Schedule(**{**schedule, "gradient_checkpointing": False, **changes}),
            "samples": 0,
            "out": tmp_path / name,
        }
        return kind(**{**given, **nouns})

    return configure_


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.log_file.read_text().splitlines()]


def loss_after(folder: RunFolder) -> float:
    return float(folder.evaluation()["after"]["loss"])


# Several at once: each must find again what it had.
TOGETHER = {
    "adamw-pissa": {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "adapter": Adapter(rank=4, ranks={"routed_experts": 2}, init="pissa", rslora=True),
    },
    "8bit-dropout": {"optimizer": "adamw_8bit", "adapter": Adapter(rank=64, dropout=0.3, lora_plus=8, init="olora")},
    "adafactor-neftune": {
        "optimizer": "adafactor",
        "neftune_noise_alpha": 5.0,
        "router": Router(mode="bias", bias_rate=0.05),
    },
    "dora-train": {"adapter": Adapter(rank=4, dora=True, groups=("attention",)), "router": Router(mode="train")},
    "16-bit": {"router": Router(mode="train"), "weight_decay": 0.1},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if number else ()) for number, name in enumerate(TOGETHER)]
)
def test_options_together_resume_as_an_unbroken_run(
    configure: Configure, stopped: Any, curve: Any, told: Any, name: str
) -> None:
    changes = dict(TOGETHER[name])
    config = configure("unbroken", **changes)
    if name == "16-bit":
        config = config.model_copy(update={"base": Base(model=config.base.model, dtype="bfloat16")})
    unbroken = lora.run(config, None, told)
    config = config.model_copy(update={"out": config.out.with_name("broken")})
    stopped(2, lambda: lora.run(config, None, told))
    broken = lora.run(LoraRun(), config.out, told)
    assert "going on from" in told.text
    assert curve(broken) == pytest.approx(curve(unbroken), abs=1e-6)
    assert loss_after(broken) == pytest.approx(loss_after(unbroken), abs=1e-6)
    one, other = (load_file(run.adapter / "adapter_model.safetensors") for run in (unbroken, broken))
    assert set(one) == set(other)
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_option_changes_the_run(configure: Configure, told: Any) -> None:
    options: dict[str, dict[str, Any]] = {
        "none": {},
        "adafactor": {"optimizer": "adafactor"},
        "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
        "lora_plus": {"adapter": Adapter(lora_plus=8)},
        "dropout": {"adapter": Adapter(dropout=0.3)},
    }
    losses = {name: loss_after(lora.run(configure(name, **some), None, told)) for name, some in options.items()}
    assert len({round(loss, 6) for loss in losses.values()}) == len(losses), losses


# --- routers ---------------------------------------------------------------------------------------------------------


def routers_on(folder: RunFolder, base: Base) -> list[Any]:
    """The routers of what the run saved, loaded as `chat` does."""
    return find_routers(attach_adapter(load(base), folder.adapter))


def test_bias_rule_moves_biases_by_its_rate_and_chat_has_them(configure: Configure, told: Any) -> None:
    config = configure("run", router=Router(mode="bias", bias_rate=0.05))
    folder = lora.run(config, None, told)
    (before,) = find_routers(AutoModelForCausalLM.from_pretrained(config.base.model))
    (after,) = routers_on(folder, config.base)
    moved = (after.bias - before.bias) / 0.05
    torch.testing.assert_close(moved, moved.round(), rtol=0, atol=1e-4)
    assert 0 < moved.abs().max() <= 4
    assert torch.equal(after.module.weight, before.module.weight)


@pytest.mark.slow
def test_bias_rule_of_a_full_run(configure: Configure, stopped: Any, curve: Any, told: Any) -> None:
    nouns = {"router": Router(mode="bias", bias_rate=0.05), "train": Train(only=("attention",))}
    unbroken = full.run(configure("unbroken", kind=FullRun, **nouns), None, told)
    config = configure("broken", kind=FullRun, **nouns)
    stopped(3, lambda: full.run(config, None, told))
    broken = full.run(FullRun(), config.out, told)
    assert curve(broken) == pytest.approx(curve(unbroken), abs=1e-6)
    biases = [find_routers(AutoModelForCausalLM.from_pretrained(run.model))[0].bias for run in (broken, unbroken)]
    (before,) = find_routers(AutoModelForCausalLM.from_pretrained(config.base.model))
    assert torch.equal(*biases)
    assert (biases[0] - before.bias).abs().max() > 0.04


@pytest.mark.parametrize(("accumulate", "packing"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)])
def test_auxiliary_loss_is_logged_next_to_the_loss(
    configure: Configure, told: Any, accumulate: int, packing: bool
) -> None:
    changes = {
        "batch_size": 4 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "sequences": Sequences(packing=packing),
    }
    plain = lora.run(configure("plain", "qwen3_moe", router=Router(mode="train"), **changes), None, told)
    heavy = configure("aux", "qwen3_moe", router=Router(mode="aux_loss", aux_loss=1.0), **changes)
    aux = lora.run(heavy, None, told)
    assert not any("aux_loss" in line for line in log_of(plain))
    assert all(2.0 <= line["aux_loss"] <= 8.0 for line in log_of(aux))  # K = 2 is even, E·K = 8 the worst
    # The first step's loss is the language model's alone, whatever the auxiliary loss weighs.
    assert log_of(aux)[0]["loss"] == pytest.approx(log_of(plain)[0]["loss"], abs=1e-6)
    assert log_of(aux)[-1]["loss"] != pytest.approx(log_of(plain)[-1]["loss"], abs=1e-6)
    assert log_of(aux)[0]["grad_norm"] != pytest.approx(log_of(plain)[0]["grad_norm"], rel=1e-3)


class _Caught(Exception):
    """Ends a run in the middle."""


class _Catch(TrainerCallback):
    """Keeps the routers' gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
        for name, weight in model.named_parameters():
            if ".mlp.gate." in name and weight.requires_grad:
                self.gradients[name] = weight.grad.clone()
        raise _Caught


def gradients_of(monkeypatch: pytest.MonkeyPatch, config: LoraRun, told: Any) -> dict[str, torch.Tensor]:
    """The routers', before the first step and before they are clipped to a norm that matters."""
    catch = _Catch()

    class Caught(trainer.ResumableTrainer):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.add_callback(catch)

    with monkeypatch.context() as patch:
        patch.setattr(session, "ResumableTrainer", Caught)
        with pytest.raises(_Caught):
            lora.run(config, None, told)
    return catch.gradients


def test_auxiliary_loss_weight_does_not_depend_on_accumulation(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    """Four portions of a batch weigh a quarter each: the gradients are about alike, and not four times as large."""
    norms = {}
    for accumulate in (1, 4):
        portions = {"batch_size": 24 // accumulate, "gradient_accumulation_steps": accumulate, "max_grad_norm": 1e9}
        gradients = []
        for weight in (1.0, 1e-9):
            router = Router(mode="aux_loss", aux_loss=weight)
            config = configure(f"{accumulate}-{weight}", "qwen3_moe", router=router, **portions)
            gradients.append(gradients_of(monkeypatch, config, told))
        own = [gradients[0][name] - without for name, without in gradients[1].items()]
        norms[accumulate] = float(torch.cat([gradient.flatten() for gradient in own]).norm())
    assert 0.7 < norms[4] / norms[1] < 1.5


def test_frozen_routers_get_no_auxiliary_loss_of_the_models_config(configure: Configure, told: Any) -> None:
    """TRL would add the auxiliary loss of any model whose config has a weight for it."""
    tiny = configure("a", "qwen3_moe")
    plain = lora.run(tiny, None, told)
    file = Path(str(tiny.base.model)) / "config.json"
    tree = json.loads(file.read_text())
    assert tree["router_aux_loss_coef"] > 0
    file.write_text(json.dumps({**tree, "router_aux_loss_coef": 100.0, "output_router_logits": True}))
    config = tiny.model_copy(update={"out": tiny.out.with_name("b")})
    heavy = lora.run(config, None, told)
    assert [line["loss"] for line in log_of(heavy)] == [line["loss"] for line in log_of(plain)]


def test_full_run_keeps_the_models_own_auxiliary_loss_weight(configure: Configure, told: Any) -> None:
    config = configure("run", "qwen3_moe", kind=FullRun, train=Train(only=("attention",)))
    folder = full.run(config, None, told)
    before, after = (
        json.loads((Path(place) / "config.json").read_text()) for place in (config.base.model, folder.model)
    )
    assert after["router_aux_loss_coef"] == before["router_aux_loss_coef"]


@pytest.mark.parametrize("mode", ["train", "bias"])
def test_router_options_work_over_4_bits(configure: Configure, told: Any, mode: Any) -> None:
    adapter = Adapter(rank=4, ranks={"attention": 6, "routed_experts": 2}, rslora=True, dropout=0.2, lora_plus=4)
    config = configure("run", kind=QloraRun, adapter=adapter, router=Router(mode=mode, bias_rate=0.05))
    folder = qlora.run(config, None, told)
    losses = [line["loss"] for line in log_of(folder)]
    assert losses[-1] < losses[0]
    tensors = load_file(folder.adapter / "adapter_model.safetensors")
    (before,) = find_routers(AutoModelForCausalLM.from_pretrained(config.base.model))
    (weight,) = (tensor for name, tensor in tensors.items() if name.endswith("mlp.gate.weight"))
    (bias,) = (tensor for name, tensor in tensors.items() if name.endswith("e_score_correction_bias"))
    assert torch.equal(weight, before.module.weight.to(weight.dtype)) == (mode == "bias")
    assert torch.equal(bias, before.bias) == (mode == "train")


# --- refused in time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("deepseek_v3", {"router": Router(mode="aux_loss")}, "softmax"),
        ("qwen3_moe", {"router": Router(mode="bias")}, "balancing bias"),
        ("llama", {"router": Router(mode="train")}, "no routed experts"),
        ("deepseek_v3", {"adapter": Adapter(dora=True)}, "adapter.dora"),
        ("deepseek_v3", {"adapter": Adapter(rank=100, init="pissa")}, "adapter.init=pissa"),
        ("llama", {"adapter": Adapter(groups=("routed_experts",))}, "no layers"),
    ],
)
def test_options_that_the_model_lacks_are_refused_before_weights_are_read(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, told: Any, family: str, changes: Any, said: str
) -> None:
    monkeypatch.setattr(session, "load_located", lambda *given, **more: pytest.fail("the weights were read"))
    with pytest.raises(ModelError, match=said):
        lora.run(configure("run", family, **changes), None, told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it works")
def test_optimizer_that_the_device_lacks_is_refused_before_anything_is_read(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setattr(open_session, "locate", lambda *given, **more: pytest.fail("the model was looked for"))
    with pytest.raises(ConfigError, match="paged_adamw_8bit") as refused:
        lora.run(configure("run", optimizer="paged_adamw_8bit"), None, told)
    assert "adamw_8bit" in refused.value.hint


# --- NEFTune ---------------------------------------------------------------------------------------------------------


def test_neftune_adds_noise_while_training_only(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    seen: list[tuple[bool, float]] = []
    models: list[PeftModel] = []
    add = lora.add_lora

    def listening(*given: Any) -> PeftModel:
        model = add(*given)
        models.append(model)
        first = model.get_base_model().model.layers[0]

        def look(module: Any, args: Any, kwargs: Any) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            weight = model.get_input_embeddings().weight
            # How far what enters the first layer is from any token's embedding.
            rows = hidden.detach().reshape(-1, hidden.shape[-1])
            exactly = "donot_use_mm_for_euclid_dist"
            distance = torch.cdist(rows, weight.detach(), compute_mode=exactly).amin(1).max()
            seen.append((module.training, float(distance)))

        first.register_forward_pre_hook(look, with_kwargs=True)
        return model

    monkeypatch.setattr(lora, "add_lora", listening)
    lora.run(configure("run", neftune_noise_alpha=5.0), None, told)
    assert any(training for training, _ in seen) and any(not training for training, _ in seen)
    assert all(distance > 0.01 for training, distance in seen if training)
    assert all(distance < 1e-3 for training, distance in seen if not training)
    embeddings = models[0].get_input_embeddings()
    assert not embeddings._forward_hooks and not hasattr(embeddings, "neftune_noise_alpha")
