"""A mixture whose experts are not known is refused by its family's name before its weights load, in every command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from dsr1_tune.cli import app
from dsr1_tune.errors import ModelError
from dsr1_tune.models import load
from dsr1_tune.models.meta import meta_model
from tests.families import WRAPPED, config_of, names, save_family

UNKNOWN = {"dbrx", "doge", "jetmoe", "longcat_flash"}


@pytest.mark.parametrize("family", sorted(UNKNOWN))
def test_unknown_mixtures_are_refused_by_name(family: str) -> None:
    with pytest.raises(ModelError, match=f"^{family}: is a mixture whose experts "):
        meta_model(config_of(family))


def test_no_other_mixture_is_refused_and_no_dense_model() -> None:
    for family in set(names()) - UNKNOWN - set(WRAPPED):  # those hold the text models that are looked at
        meta_model(config_of(family))
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    meta_model(LlamaConfig(**sizes, num_hidden_layers=1))
    meta_model(config_of("deepseek_v3", first_k_dense_replace=2))
    meta_model(config_of("doge", is_moe=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a dbrx and rows of both kinds."""
    out = tmp_path_factory.mktemp("unknown")
    save_family(out / "dbrx", tiny_tokenizer, "dbrx")
    rows = [{"instruction": f"What helps with case {i}?", "output": f"Rest for {i + 2} days."} for i in range(8)]
    pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in rows]
    (out / "rows.json").write_text(json.dumps(rows))
    (out / "pairs.json").write_text(json.dumps(pairs))
    return out


@pytest.mark.parametrize(
    "command",
    [
        "lora --data rows.json --out run",
        "qlora --data rows.json --out run",
        "full --data rows.json --out run",
        "esft --data rows.json --out run",
        "dpo --data pairs.json --out run",
        "reward --data pairs.json --out run",
        "plan",
        "experts rows.json --out experts.json",
        "quantize {model} --to int8 --out run --all",
    ],
)
def test_every_command_refuses_alike(folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(load, "_read_model", lambda *args: pytest.fail("weights were loaded"))
    words = command.replace("{model}", "dbrx").split()
    done = CliRunner().invoke(app, words if "quantize" in words else [*words, "--model", "dbrx"])
    assert isinstance(done.exception, ModelError), done.output
    assert "dbrx: is a mixture whose experts" in done.exception.message
    assert not (folder / "run").exists()
