"""Under autocast a model below its head computes what it computes without; a step's routers choose what they would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from dsr1_tune.config import Adapter, Base
from dsr1_tune.models.load import load
from dsr1_tune.models.trained.lora import add_lora
from dsr1_tune.models.trained.own_precision import OwnPrecision
from tests.conftest import TinyModel
from tests.families import save_family
from tests.lora_runs import ConfigureLora, go

IDS = torch.randint(2, 258, (2, 24), generator=torch.Generator().manual_seed(0))


def under_autocast(model: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=IDS, use_cache=False).logits.float()


# Routers in float32, an indexer, streams that are mixed in float32, linear attention with states in float32.
@pytest.mark.parametrize("name", ["exaone_moe", "deepseek_v32", "deepseek_v4", "qwen3_next"])
@torch.no_grad()
def test_autocast_changes_nothing(tmp_path: Path, tiny_tokenizer: Any, name: str) -> None:
    model = load(Base(model=str(save_family(tmp_path / name, tiny_tokenizer, name)), dtype="bfloat16")).model
    alone = model(input_ids=IDS, use_cache=False).logits.float()
    assert (under_autocast(model) - alone).abs().max() > 1e-2
    kept = OwnPrecision(model, torch.bfloat16)
    assert torch.equal(under_autocast(model), alone)
    kept.close()
    assert (under_autocast(model) - alone).abs().max() > 1e-2


def test_an_adapter_multiplies_in_16_bits(tiny_base: Path) -> None:
    model = add_lora(load(Base(model=str(tiny_base), dtype="bfloat16")).model, Adapter(groups=("attention",)))
    kept, seen = OwnPrecision(model, torch.bfloat16), list[torch.dtype]()
    side = next(module for name, module in model.named_modules() if name.endswith("lora_A.default"))
    assert side.weight.dtype == torch.float32
    side.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    loss = under_autocast(model).square().mean()
    loss.backward()
    assert seen == [torch.bfloat16]
    kept.close()
    under_autocast(model)
    assert seen == [torch.bfloat16] * 2 and not [m for m in model.modules() if "forward" in vars(m)]


@pytest.mark.parametrize("is_checkpointed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_training_step_chooses_the_experts_that_evaluation_chooses(
    configure_lora: ConfigureLora,
    tiny_model: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_checkpointed: bool,
) -> None:
    base = tiny_model("deepseek_v3", n_routed_experts=64, num_experts_per_tok=8, num_hidden_layers=2)
    compute, passes = DeepseekV3TopkRouter.forward, list[tuple[Any, Tensor, Tensor]]()

    def watched(router: Any, hidden: Tensor) -> Any:
        out = compute(router, hidden)
        if torch.is_grad_enabled() and type(hidden) is Tensor:  # others are imagined, to see what gradients reach
            passes.append((router, hidden.detach().clone(), out[2]))
        return out

    monkeypatch.setattr(DeepseekV3TopkRouter, "forward", watched)
    given = {"max_steps": 1, "samples": 0, "gradient_checkpointing": is_checkpointed}
    go(configure_lora(tmp_path / "run", base=Base(model=str(base), dtype="bfloat16"), **given))
    assert len(passes) == 1 + is_checkpointed
    rounded = 0
    for router, hidden, index_TK in passes:
        assert torch.equal(compute(router, hidden)[2], index_TK)
        with torch.autocast("cpu", torch.bfloat16):
            rounded += int((compute(router, hidden)[2].sort().values != index_TK.sort().values).any(-1).sum())
    assert rounded > 0  # tokens that would have gone elsewhere
