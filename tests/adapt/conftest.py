"""A tiny base and a short file, from which the whole way takes seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune.adapt.run import run
from dsr1_tune.config import AdaptRun
from tests.conftest import save_tiny


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A tiny Qwen3-MoE."""
    return save_tiny(tmp_path_factory.mktemp("qwen") / "base", tiny_tokenizer, "qwen3_moe")


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty records, one of them empty."""
    path = tmp_path_factory.mktemp("short") / "short.json"
    rows = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b} indeed"} for a in range(5) for b in range(6)]
    path.write_text(json.dumps([*rows, {"input": "what is nothing?", "output": ""}]))
    return path


def settings(base: Path, data: Path, out: Path, **more: Any) -> AdaptRun:
    """The whole way in a few seconds."""
    tree: dict[str, Any] = {
        "data": {"files": [str(data)]},
        "base": {"model": str(base)},
        "schedule": {"max_steps": 2, "max_tokens": 128},
        "samples": 0,
        "compare": {"answers": 0, "general": [str(data)], "max_rows": 8},
        "gates": {"max_loss_increase": 0.5, "min_agreement": 0.5},
        "memory": "8GiB",
        "out": str(out),
    }
    return AdaptRun.model_validate({**tree, **more})


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="session")
def whole(qwen: Path, short: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished way, and what it said. Copy it to change it."""
    out, console = tmp_path_factory.mktemp("adapt") / "out", quiet()
    assert run(settings(qwen, short, out), console) == out / "model"
    return out, console.file.getvalue()  # type: ignore[attr-defined]
