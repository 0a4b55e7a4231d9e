"""Gates: a line for each that was missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsr1_tune.config import Gates
from dsr1_tune.export.comparison.gates import missed_gates
from dsr1_tune.export.comparison.result import Comparison
from dsr1_tune.export.comparison.statistics import Estimate


def test_gates_say_what_was_missed(trained: tuple[Comparison, Path]) -> None:
    found, _ = trained
    assert found.domain is not None
    domain = replace(found.domain, increase=Estimate(0.031, 0.02, 0.04), agreement=Estimate(0.9, 0.88, 0.92))
    found = replace(found, domain=domain, general=replace(found.general, increase=Estimate(0.005, -0.01, 0.02)))
    assert missed_gates(found, Gates()) == ()
    assert missed_gates(found, Gates(max_loss_increase=0.031, min_agreement=0.9, max_general_drop=0.005)) == ()
    missed = missed_gates(found, Gates(max_loss_increase=0.02, min_agreement=0.95, max_general_drop=0.001))
    assert [line.split(" (")[0] for line in missed] == [
        "domain loss rose by +3.10%",
        "agreement is 90.00%",
        "general loss rose by +0.50%",
    ]
    broken = replace(found, general=replace(found.general, increase=Estimate(float("nan"), 0, 0)))
    assert len(missed_gates(broken, Gates(max_general_drop=0.5))) == 1
