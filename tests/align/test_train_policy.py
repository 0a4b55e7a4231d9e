"""Alignment that starts from the adapter of an earlier run."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from dsr1_tune.config import DpoRun, LoraRun
from dsr1_tune.models.trained.attach import load_with_adapter
from dsr1_tune.runs.evaluate import sample_answers
from dsr1_tune.runs.folder import RunFolder
from dsr1_tune.train import lora
from tests.align.dpo_runs import PAIRS, ConfigureDpo, go, log_of


@pytest.fixture(scope="session")
def sft(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of lora on questions of the pairs."""
    folder = tmp_path_factory.mktemp("sft")
    (folder / "sums.json").write_text(json.dumps([{"input": row["prompt"], "output": row["chosen"]} for row in PAIRS]))
    config = LoraRun.model_validate(
        {
            "data": {"files": [str(folder / "sums.json")]},
            "base": {"model": str(tiny_base)},
            "schedule": {"max_steps": 2, "learning_rate": 1e-2, "max_tokens": 128},
            "adapter": {"rank": 3, "ranks": {"routed_experts": 2}},
            "watch": {"trackers": []},
            "samples": 0,
            "out": str(folder / "run"),
        }
    )
    return lora.run(config, console=Console(file=io.StringIO()))


@pytest.mark.parametrize("how", ["keep", "continue"])
def test_policy_training_starts_from_the_adapter_of_a_lora_run(
    sft: RunFolder, configure_dpo: ConfigureDpo, tmp_path: Path, how: str
) -> None:
    more = {"adapter": {"rank": 4}} if how == "keep" else {}
    folder = go(
        configure_dpo(tmp_path / "run", base=sft.path, start={"adapter": how}, schedule={"max_steps": 4}, **more)
    )
    before, after = (load_file(one.adapter / "adapter_model.safetensors") for one in (sft, folder))
    assert log_of(folder)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert folder.evaluation()["before"]["loss"] == pytest.approx(sft_loss(sft, folder), abs=1e-4)
    assert before.keys() == after.keys()
    for name, old in before.items():
        if how == "continue":
            assert after[name].shape == old.shape and not torch.equal(after[name], old)
        else:
            kept = kept_part(name, after[name], old)
            assert torch.equal(kept, old), name
            assert after[name].numel() > old.numel()
    loaded = load_with_adapter(folder.path)
    assert sample_answers(loaded.model, loaded.tokenizer, [], 4) == []
    assert torch.isfinite(loaded.model(torch.arange(9).view(1, -1)).logits).all()


def kept_part(name: str, weight: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """The first ranks of a factor; A of experts is (E·R, in), expert by expert, and B is (out, R·E), rank by rank."""
    if "lora_B" in name:
        return weight[:, : old.shape[1]]
    num_experts = 4 if ".experts." in name else 1
    new, kept = (factor.reshape(num_experts, -1, factor.shape[1]) for factor in (weight, old))
    return new[:, : kept.shape[1]].reshape(old.shape)


def sft_loss(sft: RunFolder, folder: RunFolder) -> float:
    """The loss on the held-out chosen answers of the run that was begun with, by itself."""
    from dsr1_tune.align.preference.encode import encode_pairs
    from dsr1_tune.align.preference.metrics import measure_pairs
    from dsr1_tune.data.prepare import prepare
    from dsr1_tune.data.record import Preference

    loaded = load_with_adapter(sft.path)
    config = folder.config(DpoRun)
    data = encode_pairs(prepare(config.data, Preference), loaded.tokenizer, config)
    return measure_pairs(loaded.model, data.held_out, 1).loss
