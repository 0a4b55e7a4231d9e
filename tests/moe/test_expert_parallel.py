"""Processes that share a layer's experts out compute what one does: outputs, gradients, beginnings and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from dsr1_tune.config import Adapter, Base
from dsr1_tune.models.load import load_located, locate
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.moe.expert_shard import ExpertParallel
from dsr1_tune.moe.shared_factors import find_shared, whole_factors
from tests.conftest import save_tiny
from tests.families import save_family
from tests.sharing import in_processes, share_out

# The routers' near ties aside, only the order of a few sums differs.
CLOSE = 2e-6


def lora_model(folder: Path, quantized: bool, parallel: ExpertParallel | None = None) -> PeftModel:
    """A tiny model with LoRA that shows, of which a process has all experts or its own."""
    base = locate(Base(model=str(folder), dtype="float32"), quantized=quantized)
    model = load_located(base, "float32", for_training=True, quantized=quantized, expert_parallel=parallel).model
    torch.manual_seed(3)
    peft_model = add_lora(model, Adapter(rank=2))
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if ".lora_B." in name:
                generator = torch.Generator().manual_seed(len(name))
                shared = next((one for one in find_shared(peft_model) if one.parameter is weight), None)
                num_all = shared.shard.num_experts if shared else 1
                num_held = len(shared.shard.mine) if shared else 1
                drawn = torch.randn(len(weight), weight.shape[1] // num_held * num_all, generator=generator) * 0.1
                weight.copy_(shared.cut(drawn) if shared else drawn)
    peft_model.gradient_checkpointing_enable({"use_reentrant": False})
    peft_model.enable_input_require_grads()
    return peft_model


def tokens_of(rank: int) -> Tensor:
    return torch.randint(258, (2, 20 + 3 * rank), generator=torch.Generator().manual_seed(rank))


def loss_of(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="sum")


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def apart(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).norm() / want.norm().clamp(min=1e-20))


def a_model(parallel: ExpertParallel, folder: Path, quantized: bool) -> dict[str, Any]:
    """Each process's tokens through a model that is shared out, and through a whole one."""
    shared, whole = lora_model(folder, quantized, parallel), lora_model(folder, quantized)
    factors = {id(factor.parameter): factor for factor in find_shared(shared)}
    by_name = dict(whole.named_parameters())
    told: dict[str, Any] = {"num_shared": len(factors), "apart": {}}

    def note(name: str, got: Tensor, want: Tensor) -> None:
        told["apart"][name] = apart(got, want)

    trained = [(name, one) for name, one in shared.named_parameters() if one.requires_grad]
    for name, one in trained:
        factor = factors.get(id(one))
        note(f"beginning of {name}", one.data, factor.cut(by_name[name].data) if factor else by_name[name].data)

    mine = loss_of(shared, tokens_of(parallel.rank))
    mine.backward()
    want = loss_of(whole, tokens_of(parallel.rank))
    want.backward()
    note("loss", mine, want)
    own = gradients_of(whole)
    for rank in range(parallel.size):
        if rank != parallel.rank:
            loss_of(whole, tokens_of(rank)).backward()
    of_all = gradients_of(whole)
    for name, one in trained:
        assert one.grad is not None, name
        factor = factors.get(id(one))
        note(name, one.grad, factor.cut(of_all[name]) if factor else own[name])

    with torch.no_grad():
        note("adapters", loss_of(shared, tokens_of(parallel.rank)), want)
        with shared.disable_adapter(), whole.disable_adapter():
            note("no adapters", *(loss_of(model, tokens_of(parallel.rank)) for model in (shared, whole)))
    with whole_factors(shared):
        state = get_peft_model_state_dict(shared)
        if parallel.rank == 0:
            for name, tensor in get_peft_model_state_dict(whole).items():
                note(f"saved {name}", state[name], tensor)
            shared.save_pretrained(str(folder / "adapter"))
    torch.distributed.barrier()
    for _, one in trained:
        one.data.fill_(7.0)
    shared.load_adapter(str(folder / "adapter"), "default", is_trainable=True)
    for name, one in trained:
        factor = factors.get(id(one))
        note(f"loaded {name}", one.data, factor.cut(by_name[name].data) if factor else by_name[name].data)
    return told


def check(told: list[dict[str, Any]]) -> None:
    for one in told:
        assert one["num_shared"] >= 4  # A and B of both fused weights, in each layer of experts
        far = {name: value for name, value in one["apart"].items() if not value < CLOSE}
        assert not far, far


def test_two_processes_that_share_a_model_out_compute_what_one_does(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = save_tiny(tmp_path / "model", tiny_tokenizer, "deepseek_v3", n_routed_experts=5)
    check(in_processes(a_model, 2, tmp_path, folder, False))


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral", "gpt_oss", "llama4_text"])
def test_every_family(tmp_path: Path, tiny_tokenizer: Any, family: str, quantized: bool, number: int) -> None:
    save = save_family if family == "llama4_text" else save_tiny
    folder = save(tmp_path / "model", tiny_tokenizer, family)
    check(in_processes(a_model, number, tmp_path, folder, quantized))


# --- one layer, routed on purpose -------------------------------------------------------------------------------------

NUM_EXPERTS, WIDTH = 5, 16


class Layer(nn.Module):
    """Experts on their own, so that a test routes as it likes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = Qwen3MoeExperts(
            Qwen3MoeConfig(num_experts=NUM_EXPERTS, moe_intermediate_size=8, hidden_size=WIDTH)
        )
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3)
            weight.requires_grad_(False)


def a_layer(parallel: ExpertParallel, dtype: torch.dtype, choices: list[list[list[int]]]) -> list[float]:
    """How far output and gradients of frozen experts are from the plain formula, for a choice (T, K) a process."""
    shared, whole = Layer().to(dtype), Layer()
    share_out(shared, parallel)
    index_TK = torch.tensor(choices[parallel.rank])
    torch.manual_seed(parallel.rank)
    x_TD, weight_TK = torch.randn(len(index_TK), WIDTH), torch.rand(index_TK.shape)
    direction_TD = torch.randn(len(index_TK), WIDTH)

    def results(layer: Layer) -> list[Tensor]:
        leaves = [one.to(layer.experts.down_proj.dtype).requires_grad_() for one in (x_TD, weight_TK)]
        out_TD = layer.experts(leaves[0], index_TK, leaves[1])
        return [out_TD, *torch.autograd.grad((out_TD.float() * direction_TD).sum(), leaves)]

    whole.experts.config._experts_implementation = "eager"
    return [apart(*pair) for pair in zip(results(shared), results(whole), strict=True)]


@pytest.mark.slow
def test_a_process_may_get_no_row_or_all_of_them(tmp_path: Path) -> None:
    choices = [[[0, 1], [1, 0], [0, 1]], [[1, 0]]]  # all are the first process's
    assert all(far < CLOSE for one in in_processes(a_layer, 2, tmp_path, torch.float32, choices) for far in one)
    choices = [[[4, 3]], [[3, 4], [4, 3]], [[4, 4]]]  # the last one's, and one expert twice
    assert all(far < CLOSE for one in in_processes(a_layer, 3, tmp_path, torch.float32, choices) for far in one)


@pytest.mark.slow
def test_rows_travel_in_16_bits(tmp_path: Path) -> None:
    choices = [[[0, 3], [1, 4], [2, 3]], [[1, 0], [4, 2]]]
    assert all(far < 0.02 for one in in_processes(a_layer, 2, tmp_path, torch.bfloat16, choices) for far in one)
