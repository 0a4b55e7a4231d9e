"""Models that are measured: gone from memory before the next, and refused before any is loaded."""

from __future__ import annotations

import io
import shutil
import weakref
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from rich.console import Console

from dsr1_tune.config import Gates, Quantize
from dsr1_tune.errors import ConfigError, DataError, ModelError, TuneError
from dsr1_tune.export import merge, quantize
from dsr1_tune.export.comparison.backends import open_scorer
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import QUICK, TinyRun, compared


def test_scorer_is_gone_before_the_next_one_comes(base: Path) -> None:
    with open_scorer(base, None, lambda text: None) as scorer:
        held = weakref.ref(scorer.model.lm_head.weight)  # type: ignore[attr-defined]
        assert held() is not None and scorer.num_bytes > held().nbytes > 0
    assert held() is None


@pytest.mark.slow
def test_scorer_of_a_gguf_file_measures_like_its_model(tiny_run: TinyRun, tmp_path: Path) -> None:
    # llama.cpp gives the chosen experts of a Qwen3-MoE weights that sum to 1, whatever its config says.
    run = tiny_run("qwen3_moe", "lora", {"norm_topk_prob": True})
    silent = Console(file=io.StringIO())
    merge.run(run.path, tmp_path / "merged", console=silent)
    quantize.run(tmp_path / "merged", tmp_path / "gguf", Quantize(to="gguf", gguf="bf16"), silent)
    found = compared(tmp_path / "merged", tmp_path / "gguf", gates=Gates(max_loss_increase=0.001, min_agreement=0.9))
    assert found.missed == () and found.domain and found.domain.divergence and found.general.divergence
    assert found.domain.divergence.value < 1e-4 and found.general.divergence.value < 1e-4
    assert found.answers is not None and found.b.stored_bytes == found.b.num_bytes


@pytest.mark.parametrize(
    ("b", "settings", "gates", "error"),
    [
        ("nowhere/at/all", {}, {}, ModelError),
        ("nope", {}, {}, ModelError),
        ("missing.gguf", {}, {}, ModelError),
        (str(Path(__file__).parent), {}, {}, ModelError),  # a folder, but of no model
        (None, {"data": (Path("missing.jsonl"),)}, {}, DataError),
        (None, {}, {"max_loss_increase": 0.02}, ConfigError),  # there are no domain rows
    ],
)
def test_check_present_refuses_bad_input_before_a_model_is_loaded(
    base: Path, b: str | None, settings: dict[str, Any], gates: dict[str, Any], error: type[TuneError], monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "dsr1_tune.export.comparison.backends.load_with_adapter", lambda *_: pytest.fail("a model was loaded")
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(error) as raised:
        compared(base, b or base, QUICK.model_copy(update=settings), Gates(**gates))
    assert raised.value.hint


@pytest.mark.parametrize("kind", ["model", "adapter", "gguf"])
def test_check_present_refuses_a_damaged_file_before_a_model_is_loaded(
    base: Path, run: RunFolder, tmp_path: Path, kind: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "dsr1_tune.export.comparison.backends.load_with_adapter", lambda *_: pytest.fail("a model was loaded")
    )
    broken = tmp_path / "broken"
    if kind == "gguf":
        pytest.importorskip("xllamacpp")
        broken.mkdir()
        (broken / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    else:
        shutil.copytree(base if kind == "model" else run.adapter, broken)
        file = next(broken.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is damaged"):
        compared(base, broken)
