"""What a library calibrates is checked before it is taken; in slow tests it really calibrates."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dsr1_tune.config import Base
from dsr1_tune.config.export import Quantize
from dsr1_tune.errors import ModelError, RunError
from dsr1_tune.export import lineage, quantize
from dsr1_tune.export.formats import gptq
from dsr1_tune.export.formats.rounding import round_to_nearest
from dsr1_tune.export.weights.accounting import Counting
from dsr1_tune.export.weights.source import open_source
from dsr1_tune.models.folder import ModelFolder
from dsr1_tune.models.load import load
from dsr1_tune.models.weights.checkpoint import Checkpoint
from dsr1_tune.moe.monitor import Routing
from dsr1_tune.quant.w4a16 import dequantize, pack
from dsr1_tune.runs.console import Narrator
from tests.conftest import TinyModel
from tests.export.conftest import TinyRun

NAME = "model.layers.1.mlp.experts.0.up_proj.weight"


def narrator() -> tuple[Narrator, io.StringIO]:
    heard = io.StringIO()
    return Narrator(Console(file=heard, width=200)), heard


# --- what comes back is not taken on trust ---------------------------------------------------------------------------

Made = Callable[..., gptq._Taken]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """made(q, scale) is what the library handed back for the matrix NAME."""

    def save(q_NK: Tensor, scale_NG: Tensor, name: str = NAME) -> gptq._Taken:
        from safetensors.torch import save_file

        save_file({f"{name}_packed": pack(q_NK), f"{name}_scale": scale_NG}, tmp_path / "model.safetensors")
        return gptq._Taken(Checkpoint(tmp_path), 32)

    return save


@pytest.fixture
def counting(tiny_base: Path) -> Counting:
    return Counting(open_source(tiny_base).layout)


WEIGHT_NK = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


def test_gptq_takes_what_is_near_enough(made: Made, counting: Counting) -> None:
    q_NK, scale_NG = round_to_nearest(WEIGHT_NK, 32)
    other_NK = (q_NK + (torch.rand(q_NK.shape) < 0.1)).clamp(max=7).to(torch.int8)
    taken = made(other_NK, scale_NG)
    assert torch.equal(taken(NAME, WEIGHT_NK, counting)[0], other_NK)
    assert taken.refused == []


def test_gptq_rounds_what_was_wiped_out_and_says_so(made: Made, counting: Counting) -> None:
    """An expert whose inputs were all zero comes back as zeros."""
    q_NK, scale_NG = round_to_nearest(WEIGHT_NK, 32)
    taken = made(torch.zeros_like(q_NK), scale_NG)
    found = taken(NAME, WEIGHT_NK, counting)
    assert torch.equal(dequantize(*found), dequantize(q_NK, scale_NG))
    assert taken.refused == [NAME]
    voice, heard = narrator()
    taken.tell(voice)
    assert NAME in heard.getvalue()


def test_gptq_finds_the_matrices_of_mixtral_by_their_modules(tiny_model: TinyModel) -> None:
    pieces = open_source(tiny_model("mixtral")).layout.pieces
    found = {w: gptq._library_s_name(pieces[f"model.layers.1.block_sparse_moe.experts.3.{w}.weight"]) for w in _W123}
    assert found == {w: f"model.layers.1.mlp.experts.3.{leaf}_proj.weight" for w, leaf in _W123.items()}
    attention = "model.layers.0.self_attn.q_proj.weight"
    assert gptq._library_s_name(pieces[attention]) == attention


_W123 = {"w1": "gate", "w2": "down", "w3": "up"}


def test_gptq_refuses_what_is_missing_or_of_another_shape(made: Made, counting: Counting) -> None:
    q_NK, scale_NG = round_to_nearest(WEIGHT_NK, 32)
    with pytest.raises(ModelError, match="left it in 16 bits"):
        made(q_NK, scale_NG, "model.layers.9.other.weight")(NAME, WEIGHT_NK, counting)
    with pytest.raises(ModelError, match=r"made it \(8, 64\) in place of \(16, 64\)"):
        made(q_NK[:8], scale_NG[:8].clone())(NAME, WEIGHT_NK, counting)


# --- rows and experts ------------------------------------------------------------------------------------------------


def test_gptq_names_experts_without_tokens() -> None:
    load_LE = torch.tensor([[3, 0, 5, 0], [2, 2, 2, 2]], dtype=torch.float64)
    routing = Routing(("model.layers.0.mlp.experts", "model.layers.1.mlp.experts"), load_LE, load_LE)
    unreached = gptq._unreached(routing)
    assert unreached == {"model.layers.0.mlp.experts": [1, 3]}
    voice, heard = narrator()
    gptq._tell_reach([[1, 2, 3, 4]], routing, unreached, voice, are_all=False)
    assert "4 tokens reach: 2 of 8" in heard.getvalue()
    assert "model.layers.0.mlp.experts: 1, 3" in heard.getvalue()
    assert "calibration_rows=4" in heard.getvalue()
    voice, heard = narrator()
    gptq._tell_reach([[1, 2, 3, 4]], routing, unreached, voice, are_all=True)
    assert "calibration_rows" not in heard.getvalue()


def test_gptq_calibrates_on_the_rows_of_the_run(tiny_run: TinyRun) -> None:
    run = tiny_run("qwen3_moe", "lora")
    tokenizer = ModelFolder(run.path.parent / "base", "base").read_tokenizer()
    rows = gptq._calibration_rows(run, tokenizer, 10)
    assert len(rows) == 10
    asked = [tokenizer.decode(row) for row in rows]
    assert all(text.startswith("<|im_start|>") and "what is" in text and "it is" in text for text in asked)
    kept = [json.loads(line) for line in (run.data / "train.jsonl").read_text().splitlines()]
    assert len(gptq._calibration_rows(run, tokenizer, 1000)) == len(kept) == 27


def test_gptq_without_a_run_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no rows to calibrate on") as caught:
        quantize.run(tiny_model("qwen3_moe"), tmp_path / "out", Quantize(to="w4a16", method="gptq"))
    assert "--method rtn" in caught.value.hint
    assert not (tmp_path / "out").exists()


# --- for real --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("family", "everything"), [("mixtral", False), ("deepseek_v3", True)])
def test_gptq_calibrates_a_run(family: str, everything: bool, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(family, "lora")
    heard = io.StringIO()
    settings = Quantize(to="w4a16", method="gptq", all=everything)
    out = quantize.run(run.path, tmp_path / "out", settings, Console(file=heard, width=200))
    stage = lineage.read(out).stage("quantize")  # type: ignore[union-attr]
    facts: dict[str, Any] = dict(stage.facts)  # type: ignore[union-attr]
    losses = facts["held_out_loss"]
    assert facts["calibration"]["rows"] == 27
    assert facts["rounded_to_nearest"] == []
    # It moves the weights further than rounding does, and the loss less far.
    assert losses["gptq"] - losses["16 bits"] < abs(losses["rtn"] - losses["16 bits"]) + 0.002
    assert all(0.1 < group["relative_error"] < 0.3 for group in facts["groups"] if group["num_quantized"])
    assert sorted(path.suffix for path in out.iterdir() if path.suffix == ".safetensors") == [".safetensors"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert "experts" in heard.getvalue()
    model = load(Base(model=str(out))).model
    with torch.no_grad():
        assert model(torch.arange(2, 66)[None]).logits.isfinite().all()
