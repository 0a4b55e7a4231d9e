"""A PEFT adapter as its files have it, and what a base's layers are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.export.adapter.file import Adapter, Names
from dsr1_tune.models.load import locate
from dsr1_tune.models.meta import meta_model
from tests.export.conftest import TinyRun, copied

ATTENTION, EXPERTS = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.experts"


@pytest.fixture(scope="module")
def names(tiny_run: TinyRun) -> Names:
    base = tiny_run("qwen3_moe").path.parent / "base"
    return Names.of(meta_model(locate(Base(model=str(base)), is_loaded=False).config))


def test_adapter_reads_pairs_and_ranks_by_module(tiny_run: TinyRun) -> None:
    adapter = Adapter.read(tiny_run("qwen3_moe").adapter)
    a, b = adapter.pair(ATTENTION)
    assert adapter.rank(ATTENTION) == adapter.file.spec(a).shape[0] == adapter.file.spec(b).shape[1] == 8
    assert torch.count_nonzero(adapter.file.read(b)) > 0
    assert not adapter.is_rs and not adapter.saved and {ATTENTION, EXPERTS} < set(adapter.layers)


def test_adapter_of_another_kind_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    folder = copied(tiny_run("qwen3_moe"), tmp_path / "run").adapter
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "IA3"}))
    with pytest.raises(ModelError, match=r"is no LoRA adapter \(IA3\)"):
        Adapter.read(folder)


def test_adapter_pair_with_more_than_a_and_b_is_refused(tiny_run: TinyRun) -> None:
    adapter = Adapter.read(tiny_run("qwen3_moe").adapter)
    layers: dict[str, Any] = {ATTENTION: {**adapter.layers[ATTENTION], "lora_magnitude_vector": "m"}}
    with pytest.raises(ModelError, match=r"has lora_A.weight, lora_B.weight, lora_magnitude_vector"):
        Adapter(adapter.file, adapter.config, layers, {}).pair(ATTENTION)


def test_names_find_blocks_of_experts_under_pefts_wrappers(names: Names) -> None:
    assert names.block_of(EXPERTS) == names.block_of(f"{EXPERTS}.base_layer") == EXPERTS
    assert names.block_of(ATTENTION) is None
    assert names.parameter_of(EXPERTS, 64, 128) == (f"{EXPERTS}.gate_up_proj", 4)
    assert names.parameter_of(EXPERTS, 64, 64) == (f"{EXPERTS}.down_proj", 4)
    assert names.parameter_of(EXPERTS, 3, 5) is None


def test_names_lead_from_memory_to_disk_and_back(names: Names) -> None:
    assert names.on_disk(f"{ATTENTION}.weight") == f"{ATTENTION}.weight"
    piece = names.in_memory("model.layers.1.mlp.experts.3.up_proj.weight")
    assert (piece.parameter, piece.expert) == (f"{EXPERTS}.gate_up_proj", 3)
    with pytest.raises(ModelError, match="is nowhere in the base"):
        names.on_disk(f"{EXPERTS}.gate_up_proj")
    with pytest.raises(ModelError, match="is nowhere in the base"):
        names.in_memory("model.other.weight")
