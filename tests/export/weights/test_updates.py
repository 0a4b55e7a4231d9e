"""Updates that a run trained: of every kind of run, and refused where they do not fit the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import TinyRun, merged, quiet, refuse_merge


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
