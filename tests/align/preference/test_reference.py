"""The reference of preference learning: its log-probabilities, and that no second model is ever in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.align.dpo_runs import ConfigureDpo, Done, log_of, watched

pytestmark = pytest.mark.usefixtures("short_collections")


def test_reference_log_probs_are_those_of_the_base_with_the_adapter_off(dpo_run: Done) -> None:
    for given, base, trained in zip(dpo_run.seen.given, dpo_run.seen.base, dpo_run.seen.trained, strict=True):
        torch.testing.assert_close(given, base, atol=1e-3, rtol=1e-5)
        assert (given - trained).abs().min() > 0.05  # by then the model is somewhere else


def test_reference_adds_no_model_and_no_adapter_in_memory(dpo_run: Done) -> None:
    coverage = dpo_run.folder.manifest()["metrics"]["coverage"]
    num_base, num_adapter = (sum(line[name] for line in coverage) for name in ("num_base", "num_trained"))
    assert dpo_run.seen.names == ["default"]
    assert dpo_run.seen.num_living - dpo_run.num_before == dpo_run.seen.num_own == num_base + num_adapter


def test_reference_of_full_training_needs_no_second_model(configure_dpo: ConfigureDpo, tmp_path: Path) -> None:
    config = configure_dpo(tmp_path / "run", method="full", schedule={"learning_rate": 1e-3, "epochs": 1})
    run = watched(config, at=3)
    assert run.seen.num_living - run.num_before == run.seen.num_own
    assert log_of(run.folder)[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)  # it is its own reference
    metrics = run.folder.manifest()["metrics"]
    assert metrics["reward_accuracy"] == 1.0 and (run.folder.model / "config.json").exists()
