"""Layered rewards: what an answer is worth, from its form up to the task, as a YAML file says.

A component gives an answer a score s, from 0 to 1. A layer's score is the mean of its components by their weights v,
and a layer counts only as far as the layers below it are met:

    score_l = Σ_c v_c · s_c / Σ_c v_c          over the components c of layer l
    gate_l  = Π_{j<l} g_j                      g_j = how far layer j is met: hard 1 or 0, soft min(1, score_j / soft)
    total   = Σ_l w_l · gate_l · score_l       w_l = the layer's weight

The lowest layer's gate is 1. Letters: N answers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dsr1_tune.align.rewards.component import Answered, BatchScorer, Component, at_once
from dsr1_tune.align.rewards.file import Gate, Layer, RewardFile, read_file

__all__ = ["Answered", "LayeredReward", "RewardResult"]


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What an answer is worth in all, by layer after its gate, and by component; and what went wrong in scoring it."""

    total: float
    layers: dict[str, float] = field(default_factory=dict)
    """gate_l · score_l by layer; times their weights they add up to the total."""
    components: dict[str, float] = field(default_factory=dict)
    """By "layer/component", as the component gave it, before weights and gates."""
    errors: tuple[str, ...] = ()
    """A line for each component that raised, or gave no number, for this answer."""
    gates: dict[str, float] = field(default_factory=dict)
    """gate_l by layer: how far the layers below it are met."""

    @property
    def is_scored(self) -> bool:
        """Whether every component gave a number: a total that lacks one cannot be compared with others."""
        return not self.errors

    @property
    def given(self) -> dict[str, float]:
        """The components that gave a number."""
        failed = {line.partition(": ")[0] for line in self.errors}
        return {place: score for place, score in self.components.items() if place not in failed}


class LayeredReward:
    """A reward file, checked; `open` loads the models that it names, `score` gives every answer its result."""

    def __init__(self, file: Path, settings: RewardFile) -> None:
        self.file = file
        self.settings = settings
        self._scorers: dict[str, BatchScorer] | None = None

    @classmethod
    def read(cls, file: Path) -> LayeredReward:
        """Check a reward file whole. Raises ConfigError that lists every problem; loads no weights."""
        with _left_as_it_is():
            return cls(file, read_file(file))

    @property
    def components(self) -> dict[str, Component]:
        """By "layer/component", in order."""
        return {f"{layer.name}/{one.title}": one for layer in self.settings.layers for one in layer.components}

    @property
    def needs_expected(self) -> bool:
        """Whether a component compares with the row's expected answer: rows without one are then not checkable."""
        return any(one.compares for one in self.components.values())

    def objection(self, expected: str) -> str:
        """Why a component that compares cannot compare with this expected answer, or nothing."""
        said = ((place, one.objection(expected)) for place, one in self.components.items() if one.compares)
        return next((f"{what}, which {place} needs" for place, what in said if what), "")

    def open(self) -> LayeredReward:
        """Load the models that the file names. Raises ModelError where one cannot be."""
        if self._scorers is None:
            with _left_as_it_is():
                self._scorers = {place: one.open() for place, one in self.components.items()}
        return self

    def score(self, answers: Sequence[Answered]) -> list[RewardResult]:
        """N results, in order. A component that fails for an answer counts 0 there and is named in `errors`."""
        self.open()
        assert self._scorers is not None
        with _left_as_it_is():
            given = {place: at_once(scorer, answers) for place, scorer in self._scorers.items()}
        return [self._result({place: scores[i] for place, scores in given.items()}) for i in range(len(answers))]

    def _result(self, given: dict[str, float | Exception]) -> RewardResult:
        scores = {place: 0.0 if isinstance(score, Exception) else score for place, score in given.items()}
        errors = tuple(f"{place}: {_one_line(score)}" for place, score in given.items() if isinstance(score, Exception))
        total, gate = 0.0, 1.0
        layers: dict[str, float] = {}
        gates: dict[str, float] = {}
        for layer in self.settings.layers:
            score = layer_score(layer, scores)
            gates[layer.name] = gate
            layers[layer.name] = gate * score
            total += layer.weight * gate * score
            gate *= (layer.gate or Gate(soft=1.0)).passed(score)
        return RewardResult(total, layers, scores, errors, gates)


@contextmanager
def _left_as_it_is() -> Iterator[None]:
    """What a reward's own code sets for all (torch's seed, its grad mode, the folder) is as before when it is done."""
    with ExitStack() as stack:
        stack.enter_context(chdir("."))
        if torch := sys.modules.get("torch"):  # unless it is loaded, nothing of it can be set
            devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(torch.set_grad_enabled(torch.is_grad_enabled()))
        yield


def layer_score(layer: Layer, scores: dict[str, float]) -> float:
    """The weighted mean of a layer's components, before its gate."""
    weighted = sum(one.weight * scores[f"{layer.name}/{one.title}"] for one in layer.components)
    return weighted / sum(one.weight for one in layer.components)


def _one_line(error: Exception) -> str:
    """The kind of an error and what it says, on one line."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # an error of the user's own may fail to say what it is
        said = ""
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
