"""What goes along with weights: tokenizer and the like unchanged, and a config.json that says what engines need."""

from __future__ import annotations

import json
from pathlib import Path

from dsr1_tune.export import lineage
from tests.export.conftest import TinyRun, merged


def test_sidecars_of_a_merge_are_the_bases_byte_by_byte(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("qwen3_moe")
    merged(run.path, tmp_path / "merged")
    base = run.path.parent / "base"
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name
    assert [stage.name for stage in lineage.read(tmp_path / "merged").stages] == ["data", "train", "adapter", "merge"]


def test_config_of_a_merge_says_how_the_router_scores(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("deepseek_v3")
    merged(run.path, tmp_path / "merged")
    told, base = (
        json.loads((place / "config.json").read_text()) for place in (tmp_path / "merged", run.path / "../base")
    )
    assert "scoring_func" not in base
    assert told == base | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
