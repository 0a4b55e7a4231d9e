"""Llama-4's experts, called as others are: the same numbers, gradients and adapters as transformers' and PEFT's."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextExperts
from typer.testing import CliRunner

from dsr1_tune.cli import app
from dsr1_tune.config import Adapter
from dsr1_tune.models.trained.lora import add_lora, check_gradients
from dsr1_tune.moe.anatomy import find_experts, find_routers
from dsr1_tune.moe.expert_lora import GroupedExpertLora, use_grouped_products
from dsr1_tune.moe.llama4 import adopt, compute_by
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.moe.replay import RoutingReplay
from dsr1_tune.moe.selected_experts import train_weights, trained_tensors
from tests.families import config_of, save_family

IDS = torch.randint(0, 258, (2, 20), generator=torch.Generator().manual_seed(0))
EXPERTS = "model.layers.1.feed_forward.experts"
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5, check_dtype=False)


def stock(num_chosen: int = 2) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of("llama4_text", num_experts_per_tok=num_chosen)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def adopted(model: Any) -> Any:
    other = copy.deepcopy(model)
    adopt(other)
    return other


def backward(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    return out.logits.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad
    }


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
@pytest.mark.parametrize("num_chosen", [1, 2])
def test_logits_and_gradients_are_those_of_transformers(num_chosen: int, implementation: str) -> None:
    theirs = stock(num_chosen)
    ours = adopted(theirs)
    assert find_experts(theirs) == [] and [block.name for block in find_experts(ours)] == [EXPERTS]
    adopt(ours)  # a second time nothing happens
    if implementation == "eager":
        compute_by(ours, implementation)
    (want, want_grads), (got, got_grads) = backward(theirs), backward(ours)
    close(got, want)
    close(got_grads, want_grads)
    assert {name.rpartition(".")[0] for name in got_grads} >= {EXPERTS, "model.layers.1.feed_forward.router"}


def test_lora_on_experts_is_what_stock_peft_makes_of_the_same_file(tmp_path: Path) -> None:
    base = stock()
    ours = add_lora(adopted(base), Adapter(rank=4, alpha=8))
    wrapper = ours.get_submodule(f"base_model.model.{EXPERTS}")
    assert isinstance(wrapper, GroupedExpertLora)
    torch.manual_seed(1)
    for name, parameter in ours.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    ours.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    assert isinstance(theirs.get_submodule(f"base_model.model.{EXPERTS}").get_base_layer(), Llama4TextExperts)
    (want, want_grads), (got, got_grads) = backward(theirs), backward(ours)
    close(got, want)
    close(got_grads, want_grads)
    assert check_gradients(ours)
    assert sum("experts" in name and "shared" not in name for name in got_grads) == 4
    assert not any("router" in name for name in got_grads)


def test_what_peft_adds_by_itself_is_grouped_too() -> None:
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    assert use_grouped_products(get_peft_model(adopted(stock()), config)) == 1


def test_some_experts_learn_what_they_learn_when_all_do() -> None:
    theirs = stock()
    ours = adopted(theirs)
    train_weights(ours, {EXPERTS: [1, 3]})
    (want, want_grads), (got, _) = backward(theirs), backward(ours)
    close(got, want)
    trained = trained_tensors(ours)
    assert len(trained) == 4
    for name, parameter in trained.items():
        number, leaf = name.removeprefix(f"{EXPERTS}.").split(".")
        close(parameter.grad, want_grads[f"{EXPERTS}.{leaf}"][int(number)])


def test_what_is_chosen_is_counted_and_replayed() -> None:
    theirs = stock()
    scores: list[Tensor] = []
    for router in (module for module in theirs.modules() if isinstance(module, Llama4Router)):
        router.register_forward_hook(lambda module, args, out: scores.append(out[0]))
    want = theirs(IDS).logits
    model = adopted(stock())
    monitor = RoutingMonitor(model)
    replay = RoutingReplay(model)
    with torch.no_grad(), replay.noting() as noted:
        close(model(IDS).logits, want)
    routing = monitor.take()
    close(routing.weight_LE[0], scores[0].sum(0))
    assert torch.equal(routing.load_LE[0], (scores[0] > 0).sum(0).double())
    replay.use(torch.stack([passes[0] for passes in noted]).unflatten(1, IDS.shape))
    close(model(IDS).logits, want)
    assert [router.name for router in find_routers(model)] == ["model.layers.1.feed_forward.router"]


def test_a_run_reaches_the_experts_and_merges(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """As it is published: beside a tower for pictures, which stays in the merged folder."""
    base = save_family(tmp_path / "base", tiny_tokenizer, "llama4")
    rows = [{"instruction": f"Case {i}?", "output": f"Rest for {i + 2} days."} for i in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["lora", "--data", str(tmp_path / "rows.json"), "--model", str(base), "--out", str(tmp_path / "run")]
    settings = ("schedule.max_steps=2", "schedule.batch_size=4", "schedule.learning_rate=0.005", "samples=0")
    done = CliRunner().invoke(app, [*words, *(word for one in settings for word in ("--set", one))])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert all(name.startswith("language_model.model.layers.") for name in changed)
    leaves = {name.split("layers.1.")[-1] for name in changed}
    assert leaves >= {"feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"}
    assert leaves >= {"feed_forward.shared_expert.up_proj.weight", "self_attn.q_proj.weight"}
    assert not any("router" in name or "norm" in name for name in changed)
