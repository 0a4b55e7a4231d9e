"""The reference policy of DPO and KTO: the model as it begins, whose log-probabilities are computed before step 1.

The log-probabilities of all answers then stand in the rows, so that no step pays for a second forward pass, and no
second model, nor a second adapter, is ever in memory: it is the same for lora, qlora, full and a start adapter.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from dsr1_tune.runs.trainer.trainer import Resumable


class PrecomputedReference(Resumable):
    """A TRL trainer that learns from encoded rows with precomputed reference log-probabilities."""

    def __init__(self, **given: Any) -> None:
        """As Resumable. TRL copies the adapter of a PEFT model as its reference, unless it is given one."""
        super().__init__(ref_model=_Placeholder(given["model"].config), **given)
        self.ref_model: Any = None
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Any, *given: Any) -> Any:
        return dataset


class _Placeholder(nn.Module):
    """Stands for a reference model while TRL's trainer is made; it is never called."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Never called."""
        raise AssertionError("the reference stands in the rows")
