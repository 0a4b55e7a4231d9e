"""What DPO and KTO share: the logged rewards, the watched loss, and a reference that is computed once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dsr1_tune.align import dpo
from dsr1_tune.align.preference import session
from tests.align.dpo_runs import ConfigureDpo, Done, go, log_of

pytestmark = pytest.mark.usefixtures("short_collections")


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


LOG2 = math.log(2)


@pytest.mark.slow
def test_preference_session_keeps_its_reference_after_a_rollback(configure_dpo: ConfigureDpo, tmp_path: Path) -> None:
    asked: list[int] = []
    ask = session.shared_log_probs

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
        patch.setattr(session, "shared_log_probs", once)
        patch.setattr(dpo.DPOTrainer, "training_step", fault)
        folder = go(
            configure_dpo(
                tmp_path / "run", watch={"trackers": [], "on_alarm": "rollback"}, schedule={"epochs": 1}, samples=0
            )
        )
    assert blown and asked == [1] and "rollback" in folder.manifest()
    assert log_of(folder)[0]["loss"] == pytest.approx(LOG2, abs=1e-5)
