"""`merge`: what comes out is base and update, tensor by tensor; and what is not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dsr1_tune.config import Merge
from dsr1_tune.errors import RunError
from dsr1_tune.export import merge
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.weights.checkpoint import Checkpoint
from tests.export.conftest import merged, quiet

from .conftest import TinyRun

FAMILIES = ["deepseek_v3", "deepseek_v2", "qwen3_moe", "mixtral"]


@pytest.mark.parametrize(
    "family",
    ["deepseek_v3", "gpt_oss", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES[1:])],
)
def test_merge_is_what_peft_merges_bit_for_bit(tiny_run: TinyRun, family: str, tmp_path: Path) -> None:
    run = tiny_run(family)
    certificate = merged(run.path, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(run.path.parent / "base", dtype=torch.float32)
    by_peft = PeftModel.from_pretrained(base, str(run.adapter)).merge_and_unload().state_dict()
    source, written = open_source(run.path), Checkpoint(tmp_path / "merged")
    assert set(written.names) == set(source.layout.pieces)
    for name, piece in source.layout.pieces.items():
        assert torch.equal(written.read(name), piece.of(by_peft[piece.parameter])), name
    assert certificate["outputs"]["max_difference"] <= 1e-4
    assert certificate["outputs"]["num_tokens"] > 100
    assert certificate["tensors"]["num_changed"] == certificate["tensors"]["num_targeted"] > 0


@pytest.mark.parametrize(
    "method, family, settings",
    [
        ("full", "deepseek_v3", {}),
        pytest.param("full", "mixtral", {"train": {"only": ["attention", "last:1"]}}, marks=pytest.mark.slow),
        ("esft", "deepseek_v3", {}),
        pytest.param("esft", "gpt_oss", {}, marks=pytest.mark.slow),
        pytest.param("esft", "mixtral", {"esft": {"method": "lora"}}, marks=pytest.mark.slow),
        ("qlora", "deepseek_v3", {}),
        pytest.param("lora", "qwen3_moe", {"adapter": {"groups": ["attention"], "dora": True}}, marks=pytest.mark.slow),
        ("lora", "deepseek_v3", {"router": {"mode": "train"}, "adapter": {"init": "pissa", "rslora": True}}),
        ("lora", "deepseek_v3", {"router": {"mode": "bias"}, "adapter": {"ranks": {"routed_experts": 4}}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streamed", ["no", "yes"])
def test_merge_takes_every_way_of_training(
    tiny_run: TinyRun, method: str, family: str, settings: dict[str, Any], streamed: str, tmp_path: Path
) -> None:
    run = tiny_run(family, method, **settings)
    certificate = merged(run.path, tmp_path / "merged", streamed=streamed)
    assert certificate["outputs"]["max_difference"] <= 1e-4
    assert certificate["tensors"]["trained_by_part"]
    assert certificate["outputs"]["streamed"] is (streamed == "yes")
    if method != "qlora":  # which measured itself over 4 bits
        assert certificate["loss"]["merged"] == pytest.approx(certificate["loss"]["run"], abs=1e-3)


def test_merge_of_qlora_says_into_which_base(tiny_run: TinyRun, tmp_path: Path) -> None:
    console = quiet()
    merge.run(tiny_run("deepseek_v3", "qlora").path, tmp_path / "merged", Merge(), console)
    assert "into the same base in 16 bits" in console.file.getvalue()  # type: ignore[attr-defined]
    assert {Checkpoint(tmp_path / "merged").spec(n).dtype for n in Checkpoint(tmp_path / "merged").names} == {"F32"}


# --- what is not certified -------------------------------------------------------------------------------------------


# --- what a user may do wrong ----------------------------------------------------------------------------------------


def test_merge_leaves_what_is_there_already(tiny_run: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").write_text("keep")
    with pytest.raises(RunError, match="is already there"):
        merge.run(tiny_run().path, tmp_path / "merged", Merge(), quiet())
    assert (tmp_path / "merged" / "mine").read_text() == "keep"


def test_merge_leaves_a_neighbours_unfinished_output(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = tmp_path / ".merged.v2.abcdefgh.part"
    mine = tmp_path / ".merged.abcdefgh.part"
    for left in (other, mine):
        left.mkdir()
    merge.run(tiny_run("qwen3_moe").path, tmp_path / "merged", Merge(), quiet())
    assert other.exists() and not mine.exists()


def test_merge_refuses_the_folder_one_is_in(tiny_run: TinyRun, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="cannot be replaced"):
        merge.run(tiny_run("qwen3_moe").path, Path(), Merge(), quiet())
