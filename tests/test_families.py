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
# Of every kind: latent attention, indexers, convolutions, state spaces, fused or alternating on disk, beside pictures.
FAMILIES = ("deepseek_v32", "deepseek_v4", "qwen3_next", "nemotron_h", "granitemoehybrid", "jamba", "kimi_linear",
            "lfm2_moe", "laguna", "inkling2_text", "gemma4_text", "minimax_m2", "qwen3_5_moe", "gpt_oss",
            "aria_text")  # fmt: skip
UNKNOWN = ("dbrx", "doge", "jetmoe", "llama4", "longcat_flash")


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "benchmarks" / script), *words]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the main commands made of the families, and what was said of it."""
    folder = tmp_path_factory.mktemp("families")
    done = run("families.py", "--families", *FAMILIES, *UNKNOWN, "--commands", "main", "convert-back", "--keep",
               str(folder), "--out", str(folder / "cells.json"))  # fmt: skip
    assert done.returncode in (0, 1), done.stderr[-3000:]
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_family_goes_through_the_main_commands(kept: Path, family: str) -> None:
    cells: dict[str, dict[str, Any]] = json.loads((kept / "cells.json").read_text())["families"][family]
    assert {name: cell["said"] for name, cell in cells.items() if cell["state"] == "failed"} == {}
    works = {name for name, cell in cells.items() if cell["state"] == "works"}
    assert works >= {
        "plan",
        "lora",
        "qlora",
        "full",
        "esft",
        "dpo",
        "lora-merged",
        "full-merged",
        "nf4",
        "int8",
        "w4a16",
        "fp8",
        "convert-adapter",
        "convert-back",
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", UNKNOWN)
def test_family_of_unknown_experts_is_refused_by_name(kept: Path, family: str) -> None:
    cells: dict[str, dict[str, Any]] = json.loads((kept / "cells.json").read_text())["families"][family]
    assert {cell["state"] for cell in cells.values()} == {"refused", "not tried"}
    assert "experts" in cells["lora"]["said"] and "laid out in a way that is not known" in cells["full"]["said"]


@pytest.mark.slow
def test_independent_check_sees_what_is_wrong(kept: Path) -> None:
    folder = kept / "minimax_m2"
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
