"""`kto` on a tiny model: good answers rise above bad ones, and its reference is asked once."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from dsr1_tune.align import kto
from dsr1_tune.config import KtoRun
from dsr1_tune.errors import DataError
from dsr1_tune.runs.folder import RunFolder

Configure = Callable[..., KtoRun]


@pytest.fixture(scope="module")
def configure(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """configure(out) learns from sixty answers to thirty prompts; those to three of them are held out."""
    path = tmp_path_factory.mktemp("data") / "feedback.jsonl"
    rows = [
        {"prompt": f"what is {a} times {b}?", "completion": answer, "label": answer.startswith("it")}
        for a in range(5)
        for b in range(6)
        for answer in (f"it is {a * b % 10}", f"no idea {b}")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))

    def configure_(out: Path, data: Path = path, **changes: Any) -> KtoRun:
        schedule = {"learning_rate": 1e-2, "batch_size": 8, "max_tokens": 128, "gradient_checkpointing": False}
        tree: dict[str, Any] = {
            "data": {"files": [str(data)]},
            "base": {"model": str(tiny_base)},
            "schedule": {**schedule, **changes.pop("schedule", {})},
            "watch": {"trackers": []},
            "samples": 1,
            "sample_tokens": 4,
            "out": str(out),
        }
        return KtoRun.model_validate({**tree, **changes})

    return configure_


def go(config: KtoRun) -> RunFolder:
    return kto.run(config, console=Console(file=io.StringIO(), width=200))


def plain(model: Any, inputs: dict[str, torch.Tensor], which: str) -> torch.Tensor:
    """log p of the answers in a batch by the formula; `which` is "KL_" for those that belong to other prompts."""
    ids = inputs[f"{which}input_ids"]
    logits = model(input_ids=ids, attention_mask=inputs[f"{which}attention_mask"]).logits
    told = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (told * inputs[f"{which}completion_mask"][:, 1:]).sum(1)


def test_kto_raises_good_answers_above_bad_ones(configure: Configure, tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    step = kto.KTOTrainer.training_step

    def looking(self: Any, model: Any, inputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        if self.state.global_step == 4:
            assert self.ref_model is None and list(model.peft_config) == ["default"]
            with torch.no_grad(), model.disable_adapter():
                seen.append((inputs["ref_logps"], plain(model, inputs, "")))
                seen.append((inputs["ref_KL_logps"], plain(model, inputs, "KL_")))
        return step(self, model, inputs, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kto.KTOTrainer, "training_step", looking)
        folder = go(configure(tmp_path / "run"))
    for given, base in seen:
        torch.testing.assert_close(given, base, atol=1e-3, rtol=1e-5)
    assert len(seen) == 2
    lines = [json.loads(line) for line in folder.log_file.read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-4) and lines[-1]["rewards/margins"] > 0.3
    assert all({"kl", "num_tokens", "grad_norm", "experts/dead"} <= line.keys() for line in lines)
    metrics = folder.manifest()["metrics"]
    assert metrics["reward_accuracy"] == 1.0 and metrics["length_accuracy"] == 0.0
    assert abs(metrics["reloaded_loss"] - metrics["loss_after"]) < 1e-5
    told = folder.evaluation()
    assert len(told["after"]["answers"]) == 6 and told["answers_after"][0]["reference"].startswith("it is")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_kto_trains_with_other_methods(configure: Configure, tmp_path: Path, method: str) -> None:
    rate = {"learning_rate": 1e-3} if method == "full" else {}
    metrics = go(configure(tmp_path / "run", method=method, schedule=rate)).manifest()["metrics"]
    assert metrics["reward_accuracy"] > 0.8 and math.isfinite(metrics["loss_after"])


def test_kto_refuses_pairs(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "why?", "chosen": "so", "rejected": "no"}) + "\n")
    with pytest.raises(DataError, match=r"pairs.jsonl: no row has an answer with a label(.|\n)*for dpo"):
        go(configure(tmp_path / "run", data=tmp_path / "pairs.jsonl"))
