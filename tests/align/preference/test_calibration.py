"""The numbers by which a reward model is measured, against values computed by hand."""

from __future__ import annotations

import json

import pytest
import torch

from dsr1_tune.align.preference import calibration


def test_calibration_numbers_are_those_computed_by_hand() -> None:
    # Margins log 4 (sure of 0.8) three times right and once wrong, and one tie.
    sure = 1.3862943611198906
    chosen, rejected = [sure, 0.0, 0.0, 0.0, 2.0], [0.0, -sure, -sure, sure, 2.0]
    lengths = [(3, 2), (2, 3), (2, 2), (4, 3), (4, 3)]
    found = calibration.compare(chosen, rejected, lengths, ["a", "a", "b", "b", None])
    assert found.accuracy == 0.7
    assert found.margin == pytest.approx(2 * sure / 5)
    assert found.length_only == 0.7
    losses = [-torch.nn.functional.logsigmoid(torch.tensor(c - r)) for c, r in zip(chosen, rejected, strict=True)]
    assert found.loss == pytest.approx(float(sum(losses)) / 5)
    tie, likely = found.bins
    assert (tie.begin, tie.num_pairs, tie.sure, tie.right) == (0.5, 1, 0.5, 0.5)
    assert (likely.num_pairs, likely.right) == (4, 0.75)
    assert likely.sure == pytest.approx(0.8)
    assert found.calibration_error == pytest.approx(4 / 5 * 0.05)
    assert {name: bucket.accuracy for name, bucket in found.differs.items()} == {"a": 1.0, "b": 0.5}
    assert calibration.PairScores.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_calibration_of_huge_margins_is_finite() -> None:
    found = calibration.compare([5000.0, -5000.0], [0.0, 0.0], [(1, 2), (1, 2)], [None, None])
    assert (found.loss, found.accuracy) == (2500.0, 0.5)
