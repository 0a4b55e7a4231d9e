"""The routing monitor: its counts are those of a plain recount from the router, whatever wraps or repeats a layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Adapter
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.moe.anatomy import find_experts, plain_name
from dsr1_tune.moe.monitor import Routing, RoutingMonitor, uncounted
from tests.conftest import tiny_config

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss"]
NUM_LAYERS = {"deepseek_v3": 1, "deepseek_v2": 1, "qwen3_moe": 2, "mixtral": 2, "gpt_oss": 2}
IDS = torch.randint(2, 258, (3, 20), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[1, 12:] = 0
PADDED[2, 5:] = 0


def build(family: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.train()


def recount(model: nn.Module, mask: Tensor | None = None) -> Routing:
    """By hand: what the routers of each layer return for IDS, token by token."""
    model.eval()
    counted: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for block in find_experts(model):
        moe = model.get_submodule(plain_name(block.name).rpartition(".")[0])
        router = getattr(moe, "gate", None) or getattr(moe, "router", None)

        def look(
            module: nn.Module, args: Any, output: Any, name: str = block.name, size: int = block.num_experts
        ) -> None:
            # Of (logits, weights, indices), in this or another order, the whole numbers are the choice.
            index_TK = next(value for value in output if not value.is_floating_point())
            weight_TK = next(value for value in output if value.is_floating_point() and value.shape == index_TK.shape)
            load_E, weight_E = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
            for token, (indices, weights) in enumerate(zip(index_TK.tolist(), weight_TK.tolist(), strict=True)):
                if mask is None or mask.reshape(-1)[token]:
                    for index, weight in zip(indices, weights, strict=True):
                        load_E[index] += 1
                        weight_E[index] += weight
            counted[name] = load_E, weight_E

        hooks.append(router.register_forward_hook(look))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    model.train()
    loads, weights = zip(*counted.values(), strict=True)
    return Routing(tuple(counted), torch.stack(loads), torch.stack(weights))


def assert_equal(counted: Routing, wanted: Routing) -> None:
    assert counted.layers == wanted.layers
    assert torch.equal(counted.load_LE, wanted.load_LE)
    torch.testing.assert_close(counted.weight_LE, wanted.weight_LE, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_a_plain_recount(family: str) -> None:
    model = build(family)
    wanted = recount(model)
    monitor = RoutingMonitor(model)
    model(input_ids=IDS, use_cache=False).logits.sum().backward()
    counted = monitor.take()
    assert len(counted.layers) == NUM_LAYERS[family]
    assert counted.rows_L.tolist() == [IDS.numel() * 2] * NUM_LAYERS[family]
    assert_equal(counted, wanted)
    assert not monitor.take().load_LE.any() and not monitor.take().weight_LE.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_with_lora_around_the_experts(family: str) -> None:
    model = build(family)
    wanted = recount(model)
    wrapped = add_lora(model, Adapter(rank=2))
    monitor = RoutingMonitor(wrapped)
    wrapped(input_ids=IDS, use_cache=False)
    assert_equal(monitor.take(), wanted)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_reentrant", [False, True])
def test_what_checkpointing_repeats_is_counted_once(family: str, is_reentrant: bool) -> None:
    model = build(family)
    wanted = recount(model)
    wrapped = add_lora(model, Adapter(rank=2))
    wrapped.gradient_checkpointing_enable({"use_reentrant": is_reentrant})
    wrapped.enable_input_require_grads()
    monitor = RoutingMonitor(wrapped)
    passes = []
    experts = wrapped.get_submodule(find_experts(wrapped)[0].name.replace(".base_layer", ""))
    experts.register_forward_pre_hook(lambda module, args: passes.append(1))
    wrapped(input_ids=IDS, use_cache=False).logits.sum().backward()
    assert len(passes) == 2, "checkpointing did not repeat the layer"
    assert_equal(monitor.take(), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_tokens_do_not_count(family: str) -> None:
    model = build(family)
    wanted = recount(model, PADDED)
    wrapped = add_lora(model, Adapter(rank=2))
    monitor = RoutingMonitor(wrapped)
    wrapped(input_ids=IDS, attention_mask=PADDED, use_cache=False)
    counted = monitor.take()
    assert counted.rows_L.tolist() == [int(PADDED.sum()) * 2] * NUM_LAYERS[family]
    assert_equal(counted, wanted)
    wrapped(input_ids=IDS, use_cache=False)
    assert monitor.take().rows_L[0] == IDS.numel() * 2  # the mask of the pass before is forgotten


def test_padding_of_packed_sequences_does_not_count() -> None:
    model = build("deepseek_v3")
    monitor = RoutingMonitor(model)
    positions = torch.zeros_like(IDS)
    positions[0] = torch.cat([torch.arange(13), torch.arange(7)])
    positions[1, :9] = torch.cat([torch.arange(4), torch.arange(5)])
    positions[2, :2] = torch.arange(2)
    model(input_ids=IDS, position_ids=positions, use_cache=False)
    assert monitor.take().rows_L.tolist() == [(20 + 9 + 2) * 2]


def test_generation_counts_every_token_once() -> None:
    model = build("deepseek_v3").eval()
    monitor = RoutingMonitor(model)
    model.generate(input_ids=IDS[1:2, :7], attention_mask=PADDED[1:2, :7], max_new_tokens=4, min_new_tokens=4)
    assert monitor.take().rows_L.tolist() == [(7 + 3) * 2]  # the last new token is never fed in


def test_passes_add_up_and_pauses_do_not_count() -> None:
    model = build("qwen3_moe")
    wanted = recount(model)
    monitor = RoutingMonitor(model)
    with torch.no_grad():
        model(input_ids=IDS)
        with uncounted():
            model(input_ids=IDS)
        model(input_ids=IDS)
    assert_equal(monitor.take(), wanted + wanted)


def test_a_closed_monitor_leaves_nothing_behind() -> None:
    model = build("mixtral")
    monitor = RoutingMonitor(model)
    monitor.close()
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        model(input_ids=IDS)
    assert not monitor.take().load_LE.any()


def test_a_dense_model_has_nothing_to_count() -> None:
    model = build("llama")
    monitor = RoutingMonitor(model)
    with torch.no_grad():
        model(input_ids=IDS)
    taken = monitor.take()
    assert taken.layers == () and taken.load_LE.shape == (0, 0)


class Work(TorchDispatchMode):
    """Adds up the numbers that torch's operators write."""

    num_written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num_written += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result


def test_monitor_writes_little_beside_a_training_step() -> None:
    """The hooks' work beside that of a step of a model so small that little else is to be done."""
    model = add_lora(build("qwen3_moe", hidden_size=128, num_experts=64), Adapter(rank=4))
    ids = IDS.repeat(8, 4)
    with Work() as whole:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    monitor = RoutingMonitor(model)
    index_TK, weight_TK = torch.randint(64, (ids.numel(), 2)), torch.rand(ids.numel(), 2)
    experts = find_experts(model)[0].module
    with Work() as hooks:
        for layer in range(2):
            monitor._count(layer, experts, (None, index_TK, weight_TK))
    assert 2 * 64 <= hooks.num_written < 0.01 * whole.num_written


# --- what is told from the counts ------------------------------------------------------------------------------------


def routing(*loads: list[float]) -> Routing:
    load_LE = torch.tensor(loads, dtype=torch.float64)
    return Routing(tuple(f"layer{number}" for number in range(len(loads))), load_LE, load_LE / 2)


def test_health_of_even_single_and_idle_layers() -> None:
    told = routing([5, 5, 5, 5], [20, 0, 0, 0], [0, 0, 0, 0], [10, 10, 0, 0])
    assert told.entropy_L.tolist() == pytest.approx([1, 0, 1, 0.5])
    assert told.max_violation_L.tolist() == pytest.approx([0, 3, 0, 1])
    assert told.dead_LE.sum(1).tolist() == [0, 3, 0, 2]
    assert told.share_LE[3].tolist() == [0.5, 0.5, 0, 0]
    assert told.weight_share_LE[1].tolist() == [1, 0, 0, 0]


def test_drift_is_the_share_of_rows_that_go_elsewhere() -> None:
    before, after = routing([4, 4, 0, 0], [1, 1, 1, 1]), routing([0, 0, 8, 8], [2, 2, 2, 2])
    assert after.drift_L(before).tolist() == pytest.approx([1, 0])
    assert routing([3, 1, 0, 0]).drift_L(routing([2, 2, 0, 0])).tolist() == pytest.approx([0.25])
    assert routing([3, 1, 0, 0]).drift_L(routing([0, 0, 0, 0])).tolist() == [0]
