"""What can go wrong while training: the kinds of alarms (texts: alarms.yaml), and what detectors are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from dsr1_tune.moe.monitor import Routing
from dsr1_tune.report.catalogue import Catalogue

Kind = Literal[
    "nan_loss", "nan_gradient", "loss_spike", "gradient_explosion", "gradient_vanishing", "router_collapse",
    "dead_experts", "overfitting",
]  # fmt: skip

TEXTS = Catalogue.beside(__file__, "alarms.yaml")


@dataclass(frozen=True)
class Alarm:
    """What is wrong, where, since which step, by which numbers, and what to try."""

    what: Kind
    where: str
    since_step: int
    detail: str

    @property
    def try_(self) -> str:
        """The advice of its kind."""
        return TEXTS.text(f"try_{self.what}", "en")

    @property
    def last_good_step(self) -> int:
        """A checkpoint after more steps than that may hold the fault: a loss is that of the weights before its step."""
        return self.since_step - (2 if self.what in ("nan_loss", "nan_gradient", "loss_spike") else 1)

    def as_json(self) -> dict[str, Any]:
        """For the log and the manifest."""
        return asdict(self) | {"try": self.try_}

    def __str__(self) -> str:
        kind = TEXTS.text(f"kind_{self.what}", "en")
        return f"{kind} ({self.where}, since step {self.since_step}): {self.detail}. Try: {self.try_}"


@dataclass(frozen=True)
class Numbers:
    """The metrics of one optimizer step; `routing` holds this step's own counts."""

    step: int
    loss: float
    grad_norms: Mapping[str, float] = field(default_factory=dict)
    """By group; "all" is the whole gradient's."""
    eval_loss: float | None = None
    routing: Routing | None = None


class Detector(Protocol):
    """Checks one step after the other, in order, for one kind of fault."""

    def check(self, now: Numbers) -> Iterator[Alarm]:
        """The alarms of this step; the same fault may be named at every step that it lasts."""


@dataclass
class Run:
    """How many checks in a row were bad, and since which step."""

    since: int = 0
    length: int = 0

    def go_on(self, step: int, is_bad: bool) -> int:
        """Count one more check; returns how many have been bad in a row."""
        if is_bad and self.length == 0:
            self.since = step
        self.length = self.length + 1 if is_bad else 0
        return self.length
