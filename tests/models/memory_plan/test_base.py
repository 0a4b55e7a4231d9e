"""A base as its config.json alone describes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import Base
from dsr1_tune.errors import ModelError
from dsr1_tune.models.memory_plan.base import PlannedBase, describe


def test_planned_base_of_671_b_needs_a_config_alone(v3: PlannedBase) -> None:
    assert v3.num_parameters == pytest.approx(671.03e9, rel=1e-4)
    assert v3.stored == "block-FP8"


def test_describe_refuses_what_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        describe(Base(model=str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        describe(Base(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "stored", "bytes_each"),
    [
        ({"dtype": "float16"}, "float16", 2.0),
        ({"dtype": None, "torch_dtype": "bfloat16"}, "bfloat16", 2.0),
        ({"quantization_config": {"quant_method": "dsr1_nf4"}}, "nf4", 0.52),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "block-FP8", 1.0),
    ],
)
def test_planned_base_takes_what_its_stored_format_does(
    tiny_base: Path, tmp_path: Path, changes: dict[str, Any], stored: str, bytes_each: float
) -> None:
    tree = json.loads((tiny_base / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(tree))
    base = describe(Base(model=str(tmp_path / "config.json")))
    assert base.stored == stored and base.folder == tmp_path
    assert base.stored_bytes == round(base.num_parameters * bytes_each)
    assert "quantization_config" not in base.model.config.to_dict()


@pytest.mark.parametrize(("asked", "planned"), [("auto", "sdpa"), ("eager", "eager"), ("flash_attention_2", "sdpa")])
def test_planned_base_computes_attention_as_the_run_will(v3: PlannedBase, asked: Any, planned: str) -> None:
    base = describe(Base(model=str(v3.folder), attention=asked))
    assert base.model.config._attn_implementation == planned


def test_planned_base_counts_by_part_and_by_what_is_fused(tiny_base: Path) -> None:
    base = describe(Base(model=str(tiny_base)))
    assert base.num_parameters == sum(weight.numel() for weight in base.model.parameters())
    assert base.num_fused == base.sizes["routed_experts"] == 4 * 3 * 64 * 64  # one layer of four experts
    assert base.largest == 4 * 2 * 64 * 64 and base.stored == "float32"
    assert base.keeps_float32  # DeepSeek-V3's balancing bias
