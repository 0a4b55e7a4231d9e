"""The loss of a merge: right ones pass, whatever noise they have, and those that lost half of the gain do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dsr1_tune.export.weights.loss import Losses, Recorded, check_loss
from dsr1_tune.export.weights.outputs import NotCertified

F32, BF16 = torch.float32, torch.bfloat16


def losses(added_up: float, base: float = 8.0, noise: float = 0.0, is_rounded: bool = True) -> Losses:
    """Losses of a model that is a single number; `noise` is what other last digits add to it."""

    def reader(value: float) -> Callable[[str], Tensor]:
        return lambda name: torch.full((64, 64), value)

    def of(read: Callable[[str], Tensor]) -> float:
        weight = read("weight").double()
        return float(weight.median()) + (noise if float(weight.std()) > 0 else 0.0)

    return Losses(of, reader(base), reader(added_up), is_rounded)


RIGHT = {
    "exact": (Recorded(8.0, 7.0, F32), 7.0, losses(7.0, is_rounded=False)),
    "better than the run's": (Recorded(8.0, 7.0, BF16), 6.9, losses(6.9)),
    "rounded to bfloat16": (Recorded(8.0, 7.0, F32), 7.05, losses(7.0)),
    "a run in bfloat16": (Recorded(8.0, 7.0, BF16), 7.03, losses(7.03, noise=0.01)),
    "a tiny gain in bfloat16": (Recorded(8.0, 7.999, BF16), 8.003, losses(8.002, noise=0.001)),
    "no gain": (Recorded(8.0, 8.0, F32), 8.00009, losses(8.0)),
    "a loss that rose": (Recorded(7.0, 8.0, F32), 8.01, losses(8.0)),
    "over 4 bits, whose error was learned away": (
        Recorded(8.3, 7.0, BF16, is_qlora=True), 7.2, losses(7.2, base=8.0, is_rounded=False)
    ),
    "over 4 bits that made the base better by luck": (
        Recorded(7.8, 7.0, BF16, is_qlora=True), 7.5, losses(7.5, base=8.1, is_rounded=False)
    ),
}  # fmt: skip
WRONG = {
    "half of the gain": (Recorded(8.0, 7.0, F32), 7.5, losses(7.0), "rounding loses"),
    "half of a small gain": (Recorded(8.0, 7.96, F32), 7.98, losses(7.96), "rounding loses"),
    "half of the gain, rounded from bfloat16": (Recorded(8.0, 7.9, BF16), 7.95, losses(7.9, noise=0.005), "rounding"),
    "another adapter": (Recorded(8.0, 7.0, F32), 7.05, losses(7.05, is_rounded=False), "base and update"),
    "another adapter in bfloat16": (Recorded(8.0, 7.0, BF16), 7.2, losses(7.2, noise=0.01), "base and update"),
    "nothing": (Recorded(8.0, 7.0, F32), 8.0, losses(8.0), "base and update"),
    "nothing of a loss that rose": (Recorded(8.0, 9.0, F32), 9.5, losses(9.0), "rounding loses"),
    "half of what was learned over 4 bits": (
        Recorded(8.1, 7.0, BF16, is_qlora=True), 7.55, losses(7.55, base=8.0, is_rounded=False), "base and update"
    ),
    "no number": (Recorded(8.0, 7.0, F32), float("nan"), losses(7.0), "rounding loses"),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_check_loss_lets_a_right_merge_pass(case: str) -> None:
    run, merged, measured = RIGHT[case]
    found = check_loss(run, merged, measured, "")
    assert found.merged - found.run <= found.tolerance and found.before == run.before


@pytest.mark.parametrize("case", WRONG)
def test_check_loss_refuses_what_lost_the_gain(case: str) -> None:
    run, merged, measured, expected = WRONG[case]
    with pytest.raises(NotCertified, match=expected) as caught:
        check_loss(run, merged, measured, "set it otherwise")
    assert (caught.value.hint == "set it otherwise") == ("rounding" in expected)
