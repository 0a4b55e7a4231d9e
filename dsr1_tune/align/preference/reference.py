"""The reference that DPO and KTO compare with: the model as it begins, asked once before the first step.

The log-probabilities of all answers then stand in the rows, so that no step pays for a second forward pass, and no
second model, nor a second adapter, is ever in memory: it is the same for lora, qlora, full and a start adapter.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from dsr1_tune.runs.trainer.trainer import Resumable


class PrecomputedReference(Resumable):
    """A trainer of TRL's that learns from encoded rows in which the reference's log-probabilities stand already."""

    def __init__(self, **given: Any) -> None:
        """As Resumable. TRL copies the adapter of a PEFT model as its reference, unless it is given one."""
        self._patched = _bare(given["model"])
        self._forward = vars(self._patched).get("forward")
        super().__init__(ref_model=_Nobody(given["model"].config), **given)
        self.ref_model: Any = None
        self.precompute_ref_logps = True

    def _prepare_dataset(self, dataset: Any, *given: Any) -> Any:
        return dataset

    def close(self) -> None:
        """Take TRL's own way of computing log-probabilities off the model, too."""
        super().close()
        vars(self._patched).pop("forward", None)
        if self._forward is not None:
            self._patched.forward = self._forward


class _Nobody(nn.Module):
    """Holds the place of a reference model while TRL's trainer is made; nobody ever asks it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def forward(self) -> None:
        """Never called."""
        raise AssertionError("the reference stands in the rows")


def _bare(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model
