"""Updates that a run trained: of every kind of run, and refused where they do not fit the base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Base
from dsr1_tune.export.weights.load_streamed import load_streamed
from dsr1_tune.export.weights.merged import Merged
from dsr1_tune.export.weights.source import open_base
from dsr1_tune.export.weights.updates import of_model
from dsr1_tune.models.load import locate
from dsr1_tune.models.weights.checkpoint import Checkpoint, write_weights
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import IDS, TinyRun, merged, quiet, refuse_merge
from tests.families import save_family


def test_updates_without_some_targets_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.q_proj" not in name}

    refuse_merge(tiny_run("qwen3_moe"), tmp_path, without, "2 tensors of the adapter are missing, such as .*q_proj")


def test_updates_that_belong_nowhere_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    def with_more(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(8, 64)}

    refuse_merge(tiny_run("qwen3_moe"), tmp_path, with_more, "1 tensors of the adapter have no place in the base")


def test_updates_of_tied_embeddings_reach_both_stored_copies(run_on: Callable[..., RunFolder], tmp_path: Path) -> None:
    from dsr1_tune.config import FullRun
    from dsr1_tune.train import full

    def stored_twice(base: Path) -> None:
        weights = load_file(base / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})

    lora = run_on(stored_twice, tie_word_embeddings=True)
    tree = lora.manifest()["config"] | {"out": str(tmp_path / "run")}
    tree.pop("adapter")
    run = full.run(FullRun.model_validate(tree), console=quiet())
    merged(run.path, tmp_path / "merged")
    written = Checkpoint(tmp_path / "merged")
    head, table = written.read("lm_head.weight"), written.read("model.embed_tokens.weight")
    assert torch.equal(head, table)
    assert not torch.equal(table, Checkpoint(lora.path.parent / "base").read("model.embed_tokens.weight"))


@pytest.mark.parametrize("family", ["kimi_linear", "bailing_hybrid", "inkling2_text"])
def test_updates_of_a_whole_model_reach_what_is_stored_in_another_order(
    tiny_tokenizer: Any, tmp_path: Path, family: str
) -> None:
    """Three stored tensors make one convolution, rows of gate and up alternate: merged is what was trained."""
    base = open_base(locate(Base(model=str(save_family(tmp_path / "base", tiny_tokenizer, family))), is_loaded=False))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "trained")
    updates = of_model(tmp_path / "trained", base.plain.base, base.layout, base.meta_model)
    merged_folder = tmp_path / "merged"
    shutil.copytree(tmp_path / "base", merged_folder)
    write_weights(Merged(base.plain, updates), merged_folder)
    again = AutoModelForCausalLM.from_pretrained(merged_folder, dtype=torch.float32)
    want, got = model.state_dict(), again.state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    streamed = load_streamed(base.located, Merged(base.plain, updates).exact, base.layout).model
    assert (streamed(IDS).logits - again(IDS).logits).abs().max() < 1e-3
