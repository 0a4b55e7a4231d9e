"""What DPO and KTO share: the logged rewards, the watched loss, and a reference computed once, in no second model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dsr1_tune.align import dpo
from dsr1_tune.align.preference import session
from tests.align.dpo_runs import ConfigureDpo, Done, go, log_of, watched


def test_preference_session_logs_rewards_and_watches_the_methods_own_loss(dpo_run: Done) -> None:
    lines = log_of(dpo_run.folder)
    assert [line["step"] for line in lines] == list(range(1, 9))
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "grad_norm"}
    assert all(names | {"num_tokens", "tokens_per_second", "experts/dead"} <= line.keys() for line in lines)
    # The model is its own reference before it has moved; afterwards chosen answers gain.
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and lines[-1]["rewards/margins"] > 0.5
    assert lines[-1]["rewards/chosen"] - lines[-1]["rewards/rejected"] == pytest.approx(lines[-1]["rewards/margins"])
    # QuantizedWeight out, too, it is DPO's loss that is watched, not that of the chosen answers.
    assert lines[3]["eval_loss"] < math.log(2) and lines[7]["eval_loss"] < lines[3]["eval_loss"]


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


LOG2 = math.log(2)


@pytest.mark.slow
def test_preference_session_keeps_its_reference_after_a_rollback(configure_dpo: ConfigureDpo, tmp_path: Path) -> None:
    asked: list[int] = []
    ask = session.log_probs

    def once(*given: Any) -> list[float]:
        asked.append(1)
        return ask(*given)

    blown: list[int] = []
    step = dpo.DPOTrainer.training_step

    def fault(self: Any, model: Any, *given: Any) -> Any:
        loss = step(self, model, *given)
        if self.state.global_step == 3 and not blown:
            blown.append(1)
            return loss * math.nan
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "log_probs", once)
        patch.setattr(dpo.DPOTrainer, "training_step", fault)
        folder = go(
            configure_dpo(
                tmp_path / "run", watch={"trackers": [], "on_alarm": "rollback"}, schedule={"epochs": 1}, samples=0
            )
        )
    assert blown and asked == [1] and "rollback" in folder.manifest()
    assert log_of(folder)[0]["loss"] == pytest.approx(LOG2, abs=1e-5)
