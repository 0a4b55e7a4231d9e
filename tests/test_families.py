"""Families of all kinds through the main commands, their results looked at by a program that uses nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
# Of every kind. Together those that share much, as each group is a program of its own.
FAMILIES = {
    "latent attention and indexers": ("deepseek_v32", "deepseek_v4"),
    "linear attention and convolutions": ("qwen3_next", "kimi_linear", "lfm2_moe"),
    "state spaces": ("nemotron_h", "granitemoehybrid", "jamba"),
    "fused or alternating on disk": ("laguna", "inkling2_text", "gpt_oss"),
    "beside pictures": ("qwen3_5_moe", "llama4"),
}
UNKNOWN = ("dbrx", "doge", "jetmoe", "longcat_flash")
WANTED = ("lora", "qlora", "full", "esft", "dpo", "lora-merged", "full-merged", "esft-merged", "nf4", "int8", "w4a16",
          "fp8", "convert-adapter", "convert-back")  # fmt: skip


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def cells_of(folder: Path, *families: str) -> dict[str, dict[str, dict[str, Any]]]:
    """What each command made of each family, one family after the other."""
    place = folder / "cells.json"
    done = run("families.py", "--families", *families, "--commands", *WANTED, "--workers", "1", "--keep", str(folder),
               "--out", str(place))  # fmt: skip
    assert done.returncode in (0, 1), done.stderr[-3000:]
    return json.loads(place.read_text())["families"]


def check(cells: dict[str, dict[str, Any]], *refused: str) -> None:
    assert {name: cell["said"] for name, cell in cells.items() if cell["state"] == "failed"} == {}
    works = {name for name, cell in cells.items() if cell["state"] == "works"}
    assert works == set(WANTED) - set(refused)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_families_go_through_the_main_commands(tmp_path: Path, kind: str) -> None:
    for family, cells in cells_of(tmp_path, *FAMILIES[kind]).items():
        check(cells, *(["convert-adapter", "convert-back"] if family == "llama4" else []))


@pytest.mark.slow
def test_families_of_unknown_experts_are_refused_by_name(tmp_path: Path) -> None:
    for cells in cells_of(tmp_path, *UNKNOWN).values():
        assert {cell["state"] for cell in cells.values()} == {"refused", "not tried"}
        assert "experts" in cells["lora"]["said"] and "laid out in a way that is not known" in cells["full"]["said"]


@pytest.mark.slow
def test_independent_check_sees_what_is_wrong(tmp_path: Path) -> None:
    check(cells_of(tmp_path, "minimax_m2")["minimax_m2"])
    folder = tmp_path / "minimax_m2"
    right = json.loads(run("family_checks.py", str(folder)).stdout.splitlines()[-1])
    assert all(found["ok"] for found in right.values()) and {"lora", "lora-merged", "nf4", "fp8"} <= set(right)
    for place, change in (("lora-merged", _one_per_cent_more), ("fp8", _upside_down)):
        file = next((folder / place).glob("*.safetensors"))
        weights = load_file(file)
        change(weights)
        save_file(weights, file, {"format": "pt"})
    file = folder / "convert-adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights[next(name for name in weights if ".experts.1." in name and "lora_B" in name)] *= 1.01
    save_file(weights, file, {"format": "pt"})
    weights = load_file(folder / "lora" / "adapter" / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name and "experts" not in name)
    weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "lora" / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    wrong = json.loads(run("family_checks.py", str(folder)).stdout.splitlines()[-1])
    assert {name for name, found in wrong.items() if not found["ok"]} >= {
        "lora",
        "lora-merged",
        "fp8",
        "convert-adapter",
    }


def _one_per_cent_more(weights: dict[str, torch.Tensor]) -> None:
    weights[next(name for name in weights if name.endswith("o_proj.weight"))] *= 1.01


def _upside_down(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name, weight in weights.items() if weight.dtype == torch.float8_e4m3fn)
    weights[name] = weights[name].view(torch.uint8).flip(0).contiguous().view(torch.float8_e4m3fn)
