from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from dsr1_tune.config import AlignRun
from dsr1_tune.errors import ModelError
from dsr1_tune.models.load import load, locate
from dsr1_tune.models.ref import base_of
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.models.trained.lora import load_plain_adapter, save_adapter
from dsr1_tune.models.trained.start import ReferencePolicy, begin_adapter, with_start
from tests.export.conftest import sums, tiny_run  # noqa: F401

IDS = torch.arange(4, 40).view(2, 18)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS, use_cache=False).logits
    return logits


def _started(run: Path, **settings: Any) -> tuple[AlignRun, PeftModel]:
    tree = {**settings, "base": {"model": str(run), **settings.get("base", {})}}
    config = with_start(AlignRun.model_validate(tree))
    return config, begin_adapter(load(config.base), config)


def _step(model: PeftModel) -> None:
    """Move all that is trained by one step of AdamW, far."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.0)
    for _ in range(2):
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("deepseek_v3", {}),
        pytest.param(
            "qwen3_moe",
            {"ranks": {"routed_experts": 2, "attention": 6}, "alphas": {"attention": 5.0}},
            marks=pytest.mark.slow,
        ),
        ("gpt_oss", {"rslora": True}),
    ],
)
def test_kept_beside_new_ranks(tiny_run: Any, tmp_path: Path, family: str, adapter: dict[str, Any]) -> None:  # noqa: F811
    run = tiny_run(family, "lora", adapter=adapter)
    was = _logits(load_with_adapter(run.path).model)
    config, model = _started(run.path, adapter={"rank": 3})
    torch.testing.assert_close(_logits(model), was, rtol=1e-4, atol=1e-4)
    reference = ReferencePolicy.of(model)
    _step(model)
    moved = _logits(model)
    assert (moved - was).abs().max() > 1e-2
    with reference.active():
        torch.testing.assert_close(_logits(model), was, rtol=1e-4, atol=1e-4)
    assert torch.equal(_logits(model), moved)

    save_adapter(model, locate(config.base), tmp_path / "adapter")
    base = load(base_of(run.adapter))
    torch.testing.assert_close(
        _logits(load_plain_adapter(base.model, tmp_path / "adapter")), moved, rtol=1e-3, atol=1e-3
    )
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (run.adapter, tmp_path / "adapter"))
    for name, factor in old.items():
        kept = new[name]
        if ".lora_B." in name:
            assert torch.equal(kept[:, : factor.shape[1]], factor), name
        elif "experts" not in name or kept.shape[0] == factor.shape[0] + 3:
            assert torch.equal(kept[: factor.shape[0]], factor), name
        else:  # A of fused experts, expert by expert
            of_each = kept.view(4, -1, kept.shape[1])[:, : factor.shape[0] // 4]
            assert torch.equal(of_each, factor.view(4, -1, factor.shape[1])), name


def test_continued_moves_the_ranks_that_are_there(tiny_run: Any) -> None:  # noqa: F811
    run = tiny_run("qwen3_moe", "lora")
    was = _logits(load_with_adapter(run.path).model)
    _, model = _started(run.path, start={"adapter": "continue"})
    reference = ReferencePolicy.of(model)
    assert sum(value.numel() for value in reference.values) == sum(
        factor.numel() for factor in load_file(run.adapter / "adapter_model.safetensors").values()
    )
    _step(model)
    assert (_logits(model) - was).abs().max() > 1e-2
    with reference.active():
        torch.testing.assert_close(_logits(model), was, rtol=1e-4, atol=1e-4)


def test_a_new_adapter_begins_as_the_base(tiny_run: Any) -> None:  # noqa: F811
    base = base_of(tiny_run("qwen3_moe", "lora").adapter).model
    _, model = _started(Path(str(base)))
    reference = ReferencePolicy.of(model)
    _step(model)
    with model.disable_adapter():
        off = _logits(model)
    with reference.active():
        torch.testing.assert_close(_logits(model), off, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "full"}, "merge it first"),
        ({"start": {"adapter": "continue"}, "adapter": {"rank": 4}}, "has nothing to say"),
        ({"adapter": {"groups": ["attention"]}}, "of its own"),
        ({"schedule": {"weight_decay": 0.1}}, "weight_decay"),
        ({"schedule": {"optimizer": "adamw_8bit"}}, "adamw_8bit"),
        ({"base": {"revision": "main"}}, "base.revision"),
    ],
)
def test_what_cannot_start_there(tiny_run: Any, changes: dict[str, Any], said: str) -> None:  # noqa: F811
    run = tiny_run("qwen3_moe", "lora")
    with pytest.raises(ModelError) as raised:
        _started(run.path, **changes)
    assert said in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.slow
def test_what_other_runs_leave(tiny_run: Any) -> None:  # noqa: F811
    full = tiny_run("qwen3_moe", "full")
    assert with_start(AlignRun.model_validate({"base": {"model": str(full.path)}})).base.model == str(full.model)
    with pytest.raises(ModelError, match="trained experts") as raised:
        _started(tiny_run("qwen3_moe", "esft").path)
    assert "dsr1-tune merge" in raised.value.hint
