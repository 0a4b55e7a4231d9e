"""What adapter_config.json says: scales by PEFT's rules, and layers by as few names as will do."""

from __future__ import annotations

from typing import Any

import pytest

from dsr1_tune.errors import ModelError
from dsr1_tune.export.adapter.config import Scale, endings, fused_config, per_expert_config, scale_of

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
