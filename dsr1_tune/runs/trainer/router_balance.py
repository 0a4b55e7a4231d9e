"""Balances the routers of a model while it trains: by an auxiliary loss, or by moving their biases after every step."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from dsr1_tune.moe.anatomy import find_routers
from dsr1_tune.moe.monitor import RoutingMonitor
from dsr1_tune.moe.routing import move_biases
from dsr1_tune.runs.trainer.collate import is_token


class BiasRule(TrainerCallback):
    """After every optimizer step: b_e += rate · sign(mean load - load of e), by the loads of the step just done."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._monitor: RoutingMonitor | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin to count."""
        self.close()
        self._routers = find_routers(model)
        self._monitor = RoutingMonitor(model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What was routed since the last step, as in an evaluation, does not count."""
        if self._monitor:
            self._monitor.take()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the biases, before a checkpoint is written."""
        if self._monitor:
            move_biases(self._routers, self._monitor.take(of_all_processes=True).load_LE, self._rate)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop counting."""
        self.close()

    def close(self) -> None:
        """Stop counting; also when training ended by an error."""
        if self._monitor:
            self._monitor.close()
            self._monitor = None


def real_tokens(inputs: dict[str, Any]) -> Tensor:
    """Which tokens of a batch are no padding, one after the other (T,)."""
    mask = inputs.get("attention_mask")
    is_real_BT: Tensor = is_token(inputs["position_ids"]) if mask is None else mask != 0
    return is_real_BT.reshape(-1)
