"""The model card: what is known stands in it, what is not is left out, and it does not disturb the hashes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import RunError
from dsr1_tune.export import card, lineage, merge, quantize
from dsr1_tune.export.card import TEXTS
from dsr1_tune.export.lineage import Stage
from dsr1_tune.moe.anatomy import PARTS as KNOWN_PARTS
from tests.export.conftest import TinyRun

QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def quantized(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run merged and quantized."""
    out = tmp_path_factory.mktemp("card")
    merged = merge.run(tiny_run("qwen3_moe", "lora").path, out / "merged", console=QUIET)
    return quantize.run(merged, out / "w4a16", Quantize(to="w4a16"), QUIET)


def written(folder: Path, language: Any = "auto") -> tuple[dict[str, Any], str]:
    """The front matter and the text."""
    _, head, text = card.run(folder, language).read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_card_tells_what_is_known(quantized: Path, tiny_run: TinyRun) -> None:
    head, text = written(quantized)
    assert head["tags"] == ["dsr1-tune", "mixture-of-experts", "lora", "w4a16"]
    assert (head["library_name"], head["language"]) == ("transformers", ["en"])
    assert "base_model" not in head and "license" not in head  # a folder has no name on the Hub, and says no licence
    metrics = tiny_run("qwen3_moe", "lora").manifest()["metrics"]
    known = lineage.known(quantized)
    certificate = known.stage("merge").facts["certificate"]
    for number in (
        f"{metrics['loss_before']:.4f} | {metrics['loss_after']:.4f}",
        "30 rows were read, 30 kept and 0 dropped",
        f"{certificate['tensors']['num_changed']} were changed",
        f"{certificate['outputs']['max_difference']:.1e} in any logit",
        f"It was {metrics['loss_before']:.4f} before training: the merge keeps 100.0% of what was gained.",
        "| adapter.rank | 8 |",
        "Measured on 3 held-out records of 24 tokens.",
        "| routed experts | 24 | 100% | 4.50 |",
    ):
        assert number in text
    assert "sums.json" in text and str(quantized.parent) not in text  # names, and nobody's folders
    assert "vllm serve w4a16 --host" in text and "llama.cpp b11549 does not load it" in text
    assert "was not measured" in text


def test_card_does_not_disturb_verify(quantized: Path) -> None:
    for language in ("en", "zh", "en"):
        written(quantized, language)
        assert lineage.verify(quantized) == []
    (quantized / "README.md").write_text("another")
    assert [difference.file for difference in lineage.verify(quantized)] == ["README.md"]


def test_card_in_chinese(quantized: Path) -> None:
    _, text = written(quantized, "zh")
    assert "## 数据" in text and "路由专家" in text
    assert not any(say["en"] in text for say in TEXTS.texts.values() if len(say["en"]) > 20 and "{" not in say["en"])


def test_card_names_every_part_of_a_model() -> None:
    assert {key.removeprefix("part_") for key in TEXTS.texts if key.startswith("part_")} == set(KNOWN_PARTS)


def test_card_tells_a_comparison_in_the_folder(quantized: Path) -> None:
    def near(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    found = {"loss_a": near(2.0), "loss_b": near(2.5), "increase": near(0.25), "agreement": None}
    told = {"a": {"name": "/x/before"}, "b": {"name": "after"}, "domain": None, "general": found}
    (quantized / "compare.json").write_text(json.dumps(told))
    try:
        _, text = written(quantized)
        assert "| general | 2.0000 | 2.5000 | +25.00% (+24.00% … +26.00%) | – |" in text
        assert "A is before, B is after." in text and "was not measured" not in text
    finally:
        (quantized / "compare.json").unlink()


def test_card_leaves_out_what_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    lineage.write(tmp_path, [Stage("adapter", {"folder": "somewhere"})])
    head, text = written(tmp_path)
    assert set(head) == {"library_name", "pipeline_tag", "tags"}
    assert not any(
        f"## {TEXTS.say(key, 'en')}" in text for key in ("data", "training", "evaluation", "merge", "comparison")
    )
    assert "None" not in text


def test_card_names_the_embedded_base_with_its_licence(tmp_path: Path) -> None:
    base = {"name": "embedded", "folder": "/gone", "license": "apache-2.0"}
    train = {"run": "/runs/medical", "command": "lora", "versions": {"dsr1-tune": "9.9"}, "base": base}
    lineage.write(tmp_path, [Stage("data", {"files": {}, "language": "zh"}), Stage("train", train)])
    head, text = written(tmp_path)
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and head["license"] == "apache-2.0"
    assert head["language"] == ["zh"] and "# medical" in text and "9.9" in text


def test_card_without_lineage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no lineage\.json"):
        card.run(tmp_path)
    assert not any(tmp_path.iterdir())
