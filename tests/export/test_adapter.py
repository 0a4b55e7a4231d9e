"""A PEFT adapter as its files have it, what a base's layers are called, and what adapter_config.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.export.adapter import Adapter, Names, Scale, endings, fused_config, per_expert_config, scale_of
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


# --- adapter_config.json: scales by PEFT's rules, and layers by as few names as will do -------------------------------

CONFIG: dict[str, Any] = {"r": 8, "lora_alpha": 16, "rank_pattern": {}, "alpha_pattern": {}}


@pytest.mark.parametrize("is_rs", [False, True])
def test_scale_stays_the_same_number_at_another_rank(is_rs: bool) -> None:
    scale = Scale(8, 16.0)
    assert scale.times(is_rs) == pytest.approx(16 / (8**0.5 if is_rs else 8))
    assert scale.at_rank(32, is_rs).rank == 32
    assert scale.at_rank(32, is_rs).times(is_rs) == pytest.approx(scale.times(is_rs))


def test_scale_of_a_module_follows_the_patterns() -> None:
    config = CONFIG | {"rank_pattern": {r"layers\.1\.q_proj": 4}, "alpha_pattern": {"q_proj": 5}}
    assert scale_of(config, "model.layers.1.q_proj", 4) == Scale(4, 5.0)
    assert scale_of(config, "model.layers.0.q_proj", 8) == Scale(8, 5.0)
    assert scale_of(CONFIG, "model.layers.0.o_proj", 8) == Scale(8, 16.0)
    by_weight = CONFIG | {"target_parameters": ["gate.weight"], "rank_pattern": {"gate.weight": 2}}
    assert scale_of(by_weight, "model.gate", 2) == Scale(2, 16.0)
    with pytest.raises(ModelError, match=r"o_proj: its factors have rank 4, but adapter_config\.json says 8"):
        scale_of(CONFIG, "model.layers.0.o_proj", 4)


def test_endings_are_the_shortest_that_name_no_other_layer() -> None:
    layers = ["a.0.mlp.up", "a.0.shared.up", "a.1.mlp.up", "a.0.attn.q"]
    assert endings(["a.0.attn.q"], layers) == ["q"]
    assert endings(["a.0.mlp.up", "a.1.mlp.up"], layers) == ["mlp.up"]
    assert endings(["a.0.mlp.up"], layers) == ["0.mlp.up"]


def test_configs_name_their_layers_and_what_differs_from_the_usual_scale() -> None:
    scales = {"a.0.q": Scale(8, 16.0), "a.1.q": Scale(8, 16.0), "a.0.up": Scale(4, 16.0), "a.1.up": Scale(4, 8.0)}
    told = per_expert_config(CONFIG | {"target_parameters": ["x"]}, scales, [*scales, "a.0.o"])
    assert (told["target_modules"], told["target_parameters"]) == (["q", "up"], None)
    assert told["rank_pattern"] == {r"a\.0\.up": 4, r"a\.1\.up": 4} and told["alpha_pattern"] == {r"a\.1\.up": 8.0}
    fused = fused_config(
        CONFIG, {"a.0.q": Scale(8, 16.0)}, {"a.0.experts.up": Scale(2, 16.0)}, ["a.0.q", "a.0.experts.up"]
    )
    assert (fused["target_modules"], fused["target_parameters"]) == (["q"], ["up"])
    assert fused["rank_pattern"] == {r"a.\d+.experts.up": 2}
