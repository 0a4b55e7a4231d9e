"""What came of a comparison: nothing between a model and itself, losses per byte where tokens differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.config import Gates
from dsr1_tune.errors import ConfigError
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.export.comparison.statistics import Estimate
from dsr1_tune.runs.folder import RunFolder
from tests.export.conftest import QUICK, compared


def test_result_of_a_model_and_itself_is_no_difference(base: Path, run: RunFolder) -> None:
    found = compared(run.path, run.path, QUICK.model_copy(update={"max_rows": 3}), Gates(max_loss_increase=0.0))
    for one in (found.domain, found.general):
        assert one is not None and one.agreement and one.divergence
        assert (one.increase.value, one.increase.high) == (0.0, 0.0)
        assert one.agreement == Estimate(1.0, 1.0, 1.0)
        assert one.divergence == Estimate(0.0, 0.0, 0.0)
    assert found.answers is not None and found.answers.identical.value == 1.0
    assert found.missed == ()


def test_result_remarks_on_answers_that_were_cut(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.answers is not None and found.answers.style_a.num_cut == 2
    assert any("2 of 2 answers" in remark and "answer_tokens" in remark for remark in found.remarks)


def test_result_of_models_with_other_tokens_is_per_byte(base: Path, tmp_path: Path, tiny_model: Any) -> None:
    other = tiny_model("llama")
    file = other / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["model"]["vocab"] = {token: (number + 1) % 258 for token, number in tree["model"]["vocab"].items()}
    for token in tree["added_tokens"]:
        token["id"] = (token["id"] + 1) % 258
    file.write_text(json.dumps(tree))
    settings = QUICK.model_copy(update={"answers": 0, "max_rows": 3})
    found = compared(base, other, settings)
    assert found.general.agreement is None and found.general.divergence is None and found.general.increase.value != 0
    assert any("other tokens" in remark for remark in found.remarks)
    with pytest.raises(ConfigError, match="min_agreement"):
        compared(base, other, settings, Gates(min_agreement=0.5))
