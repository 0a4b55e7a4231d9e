"""What can go wrong while training: the kinds of alarms (texts: alarms.yaml), and what detectors are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, cast

from dsr1_tune.config import AlignRun, EsftRun, LoraRun, TuneRun
from dsr1_tune.moe.monitor import Routing
from dsr1_tune.report.catalogue import Catalogue, Language

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
    advice: tuple[str, ...] = ()
    """What to try, by the names that alarms.yaml has after `try_`."""

    @property
    def try_(self) -> str:
        """What to try, in words."""
        return in_words(self.advice, "en")

    @property
    def last_good_step(self) -> int:
        """A checkpoint after more steps than that may hold the fault: a loss is that of the weights before its step."""
        return self.since_step - (2 if self.what in ("nan_loss", "nan_gradient", "loss_spike") else 1)

    def as_json(self) -> dict[str, Any]:
        """For the log and the manifest."""
        return asdict(self) | {"try": self.try_}

    def __str__(self) -> str:
        kind = TEXTS.text(f"kind_{self.what}", "en")
        said = f"{kind} ({self.where}, since step {self.since_step}): {self.detail}"
        return f"{said}. Try: {self.try_}" if self.try_ else said


Changes = Callable[[TuneRun], bool]
"""Whether a change is one to the run as it is set up."""


def _always(run: TuneRun) -> bool:
    return True


def _has_rank(run: TuneRun) -> bool:
    if isinstance(run, EsftRun):
        return run.esft.method == "lora"
    return isinstance(run, LoraRun) or (isinstance(run, AlignRun) and run.method != "full")


def _may_balance(run: TuneRun) -> bool:
    return run.router.mode in ("frozen", "train") and not isinstance(run, AlignRun)


_LEARNS_SLOWER: dict[str, Changes] = {"lower_rate": _always}
_COUNTS_FURTHER: dict[str, Changes] = {
    "leave_float16": lambda run: run.base.dtype in ("auto", "float16"),
    "take_float32": lambda run: run.base.dtype == "bfloat16",
}
_ADVICE: dict[Kind, dict[str, Changes]] = {
    "nan_loss": _LEARNS_SLOWER | _COUNTS_FURTHER,
    "nan_gradient": _LEARNS_SLOWER | _COUNTS_FURTHER,
    "loss_spike": _LEARNS_SLOWER | {"raise_warmup": _always, "look_at_records": _always},
    "gradient_explosion": _LEARNS_SLOWER | {"lower_max_norm": _always, "raise_warmup": _always},
    "gradient_vanishing": {
        "leave_out": _always,
        "raise_rank": _has_rank,
        "take_float32": lambda run: run.base.dtype != "float32",
    },
    "router_collapse": _LEARNS_SLOWER
    | {"freeze_routers": lambda run: run.router.mode != "frozen", "vary_data": _always},
    "dead_experts": _LEARNS_SLOWER
    | {
        "balance": _may_balance,
        "raise_bias_rate": lambda run: run.router.mode == "bias",
        "raise_aux_loss": lambda run: run.router.mode == "aux_loss",
        "vary_data": _always,
    },
    "overfitting": {
        "lower_epochs": _always,
        "lower_rank": _has_rank,
        "add_data": _always,
        "take_earlier": _always,
    },
}


def advise(what: Kind, run: TuneRun) -> tuple[str, ...]:
    """What may help against a kind of alarm in this run: nothing that is so already, or that it cannot have."""
    return tuple(name for name, is_change in _ADVICE[what].items() if is_change(run))


def advice_in(alarm: Mapping[str, Any]) -> tuple[str, ...]:
    """The advice of an alarm that a run has written; all of its kind, where an earlier release named none."""
    told = alarm.get("advice")
    return tuple(map(str, told if isinstance(told, list) else _ADVICE.get(cast(Kind, str(alarm.get("what"))), ())))


def in_words(advice: Iterable[str], language: Language) -> str:
    """Pieces of advice as one sentence's; those of another release, which have no text here, are left out."""
    texts = [TEXTS.text(f"try_{name}", language) for name in advice if f"try_{name}" in TEXTS.texts]
    return ("；" if language == "zh" else "; ").join(texts)


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
