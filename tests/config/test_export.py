"""Settings of gates: shares and percent."""

from __future__ import annotations

from typing import Any

import pytest

from dsr1_tune.config import CompareRun, Gates
from dsr1_tune.config.load import load_config
from dsr1_tune.errors import ConfigError


@pytest.mark.parametrize(
    ("said", "share"), [("2%", 0.02), ("0.02", 0.02), (" 1.5% ", 0.015), ("150%", 1.5), (0, 0.0), ("0%", 0.0)]
)
def test_gate_limits_are_shares_or_percent(said: Any, share: float) -> None:
    assert Gates(max_loss_increase=said).max_loss_increase == pytest.approx(share)


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("min_agreement", "95", "write 95% or 0.95"),
        ("min_agreement", "150%", "more than all"),
        ("min_agreement", "most", "for example 2% or 0.02"),
        ("max_loss_increase", "two", "for example 2% or 0.02"),
    ],
)
def test_gate_that_is_written_wrongly_is_told_how(name: str, said: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: .*{told}"):
        load_config(CompareRun, None, {f"gates.{name}": said})


@pytest.mark.parametrize("said", ["2", "x", "-1%", "nan%", "inf"])
def test_gate_limits_of_other_kinds_are_refused(said: str) -> None:
    with pytest.raises(ValueError, match="max_loss_increase"):
        Gates(max_loss_increase=said)
