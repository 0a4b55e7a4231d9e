"""What is measured before and after learning from preferences: does the model find the better answer likelier?

Two questions are kept apart. *Likelier*: which answer does the model itself prefer, per token or as a whole. *Raised*:
which answer did training make likelier than it was; β times that change is DPO's implicit reward (arXiv 2305.18290).
Beside both stands what length alone would say, because chosen answers are often the longer ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, ClassVar, TypeVar

from rich.table import Table

from dsr1_tune.align.preference.encode import FeedbackExample, PairExample, differs_in
from dsr1_tune.align.preference.log_probs import PromptAndAnswer, log_probs
from dsr1_tune.runs.console import plain_table
from dsr1_tune.text.amount import amount

Value = TypeVar("Value")


@dataclass(frozen=True)
class AnswerLogProb:
    """An answer under a model: its log-probability in nats, and its number of tokens."""

    log_prob: float
    num_tokens: int


class _Measured:
    """What pairs and feedback have in common: answers, good ones and bad ones, that stand against one another."""

    answers: Any
    """All of them, as AnswerLogProb."""
    is_good: Any
    """Of each whether it is a good one."""
    against: ClassVar[type[zip[Any]] | type[product[Any]]]
    """How good and bad ones are put beside one another."""

    def sides(self, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """The values of all answers parted into those of the good and those of the bad ones."""
        both = list(zip(values, self.is_good, strict=True))
        return [value for value, is_good in both if is_good], [value for value, is_good in both if not is_good]

    def ranked(self, values: Sequence[float]) -> float:
        """Share of the comparisons of a good with a bad answer in which the good one's value is higher."""
        pairs = self.against(*self.sides(values))
        # A tie counts half.
        return _mean([float(one > other) + 0.5 * float(one == other) for one, other in pairs])

    @property
    def loss(self) -> float:
        """Mean loss over the tokens of the good answers (of all, where none is good), in nats per token."""
        good = self.sides(self.answers)[0] or self.answers
        return -sum(answer.log_prob for answer in good) / sum(answer.num_tokens for answer in good)

    @property
    def accuracy(self) -> float:
        """Share of the comparisons in which the good answer is likelier, per token."""
        return self.ranked([answer.log_prob / answer.num_tokens for answer in self.answers])

    @property
    def length_accuracy(self) -> float:
        """Share in which the good answer is the longer one: what knowing nothing but length would score."""
        return self.ranked([answer.num_tokens for answer in self.answers])

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.num_tokens for answer in self.answers)

    def rewards(self, before: _Measured, beta: float) -> list[float]:
        """For each answer how much likelier it became, times β."""
        return [beta * (now.log_prob - was.log_prob) for now, was in zip(self.answers, before.answers, strict=True)]

    def reward_accuracy(self, before: _Measured) -> float:
        """Share of the comparisons in which the good answer was raised more."""
        return self.ranked(self.rewards(before, 1.0))


@dataclass(frozen=True)
class HeldOutPairs(_Measured):
    """The held-out pairs under a model, in their order; a chosen answer is compared with its rejected one."""

    chosen: tuple[AnswerLogProb, ...]
    rejected: tuple[AnswerLogProb, ...]
    differs: tuple[str, ...] = ()
    """What the rows say that the two answers differ in, where any of them does."""

    against = zip

    @property
    def answers(self) -> tuple[AnswerLogProb, ...]:
        """The chosen answers, then the rejected ones."""
        return self.chosen + self.rejected

    @property
    def is_good(self) -> list[bool]:
        """Chosen or rejected."""
        return [True] * len(self.chosen) + [False] * len(self.rejected)

    @property
    def num_pairs(self) -> int:
        """How many there are."""
        return len(self.chosen)

    @property
    def accuracy_by_sum(self) -> float:
        """Share of the pairs whose chosen answer is the likelier one as a whole; it favours short answers."""
        return self.ranked([answer.log_prob for answer in self.answers])

    def by_difference(self) -> dict[str, HeldOutPairs]:
        """The pairs that differ in the same, by what that is."""
        rows = list(zip(self.differs, self.chosen, self.rejected, strict=False))
        names = sorted(set(self.differs) - {""})
        return {name: HeldOutPairs(*zip(*(both for its, *both in rows if its == name), strict=True)) for name in names}

    def margins(self, before: HeldOutPairs, beta: float) -> list[float]:
        """For each pair, how much more its chosen answer was raised than its rejected one, times β."""
        return [beta * (a - b) for a, b in zip(*self.sides(self.rewards(before, 1.0)), strict=True)]

    def reward_margin(self, before: HeldOutPairs, beta: float) -> float:
        """The mean of `margins`."""
        return _mean(self.margins(before, beta))

    def preference_loss(self, before: HeldOutPairs, beta: float) -> float:
        """Mean of -log σ(margin): DPO's own loss on these pairs."""
        return _mean([_softplus(-margin) for margin in self.margins(before, beta)])

    def __str__(self) -> str:
        return f"chosen answer likelier per token: {self.accuracy:.1%}, loss on chosen answers {self.loss:.4f}"

    def as_json(self) -> dict[str, Any]:
        """For eval.json; "pairs" in the order of data/eval.jsonl."""
        both = zip(self.chosen, self.rejected, strict=True)
        return {
            "loss": self.loss,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "num_records": self.num_pairs,
            "num_tokens": self.num_tokens,
            "accuracy": self.accuracy,
            "accuracy_by_sum": self.accuracy_by_sum,
            "length_accuracy": self.length_accuracy,
            "pairs": [{"chosen": asdict(a), "rejected": asdict(b)} for a, b in both],
            "differs": list(self.differs),
            "accuracy_by_difference": {name: pairs.accuracy for name, pairs in self.by_difference().items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOutPairs:
        """The inverse of `as_json`."""
        pairs = value["pairs"]
        chosen, rejected = ([AnswerLogProb(**pair[side]) for pair in pairs] for side in ("chosen", "rejected"))
        return cls(tuple(chosen), tuple(rejected), tuple(value["differs"]))


def measure_pairs(
    model: Any, examples: Sequence[PairExample], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> HeldOutPairs:
    """Both answers of every pair under the model; `advance` counts answers."""
    found = _measure(model, [answer for one in examples for answer in one.answers], pad_token, advance)
    differs = tuple(differs_in(one.preference.row) for one in examples)
    return HeldOutPairs(found[::2], found[1::2], differs if any(differs) else ())


@dataclass(frozen=True)
class HeldOutFeedback(_Measured):
    """The held-out answers under a model, in their order; every good one is compared with every bad one."""

    answers: tuple[AnswerLogProb, ...]
    is_good: tuple[bool, ...]
    """Whether people liked them."""
    against = product

    @property
    def num_pairs(self) -> int:
        """How many ways there are to put a good answer beside a bad one."""
        return sum(self.is_good) * (len(self.is_good) - sum(self.is_good))

    def reward_margin(self, before: HeldOutFeedback, beta: float) -> float:
        """Mean reward of the good answers less that of the bad ones; not a number where one kind is missing."""
        good, bad = self.sides(self.rewards(before, beta))
        return _mean(good) - _mean(bad)

    def preference_loss(self, before: HeldOutFeedback, beta: float) -> float:
        """KTO's own loss on these answers, its KL left out."""
        rewards = zip(self.rewards(before, beta), self.is_good, strict=True)
        return _mean([math.exp(-_softplus(reward if is_good else -reward)) for reward, is_good in rewards])

    def __str__(self) -> str:
        ranked = f"good answers likelier than bad ones per token: {self.accuracy:.1%}, " if self.num_pairs else ""
        return f"{ranked}loss on good answers {self.loss:.4f}"

    def as_json(self) -> dict[str, Any]:
        """For eval.json; "answers" in the order of data/eval.jsonl."""
        labelled = zip(self.answers, self.is_good, strict=True)
        return {
            "loss": self.loss,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "num_records": len(self.answers),
            "num_tokens": self.num_tokens,
            "accuracy": _or_none(self.accuracy),
            "length_accuracy": _or_none(self.length_accuracy),
            "answers": [{**asdict(answer), "is_good": is_good} for answer, is_good in labelled],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> HeldOutFeedback:
        """The inverse of `as_json`."""
        answers = value["answers"]
        found = tuple(AnswerLogProb(answer["log_prob"], answer["num_tokens"]) for answer in answers)
        return cls(found, tuple(answer["is_good"] for answer in answers))


def measure_feedback(
    model: Any, examples: Sequence[FeedbackExample], pad_token: int, advance: Callable[[int], None] = lambda count: None
) -> HeldOutFeedback:
    """Every answer under the model; `advance` counts them."""
    found = _measure(model, [(one.prompt_ids, one.completion_ids) for one in examples], pad_token, advance)
    return HeldOutFeedback(found, tuple(one.feedback.is_good for one in examples))


def _measure(
    model: Any, answers: Sequence[PromptAndAnswer], pad_token: int, advance: Callable[[int], None]
) -> tuple[AnswerLogProb, ...]:
    values = log_probs(model, answers, pad_token, advance)
    return tuple(AnswerLogProb(value, len(answer)) for value, (_, answer) in zip(values, answers, strict=True))


def compared(before: Any, after: Any, beta: float) -> dict[str, float | None]:
    """Before and after in numbers, for manifest and eval.json; None where there are too few rows."""
    numbers = {
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "length_accuracy": after.length_accuracy,
        "reward_accuracy": after.reward_accuracy(before),
        "reward_margin": after.reward_margin(before, beta),
    }
    if isinstance(after, HeldOutPairs):
        numbers |= {"by_sum_before": before.accuracy_by_sum, "by_sum_after": after.accuracy_by_sum}
    return {name: _or_none(number) for name, number in numbers.items()}


def as_table(before: Any, after: Any, beta: float, are_held_out: bool) -> Table:
    """Before and after, for the terminal."""
    is_paired = isinstance(after, HeldOutPairs)
    good, bad = ("chosen", "rejected") if is_paired else ("good", "bad")
    count = amount(after.num_pairs, "pair") if is_paired else amount(len(after.answers), "answer")
    title = f"{'Held-out' if are_held_out else 'Training'} preferences ({count}, {amount(after.num_tokens, 'token')})"
    table = plain_table(title, "", "before", "after", "change")

    def shares(what: str, was: float, now: float) -> None:
        change = "" if math.isnan(now) else f"{100 * (now - was):+.1f} points"
        table.add_row(what, _percent(was), _percent(now), change)

    shares(f"{good} likelier than {bad}, per token", before.accuracy, after.accuracy)
    if is_paired:
        shares(f"{good} likelier than {bad}, as a whole", before.accuracy_by_sum, after.accuracy_by_sum)
    table.add_row(f"{good} raised more than {bad}", "", _percent(after.reward_accuracy(before)), "")
    table.add_row(f"mean margin of reward (β = {beta:g})", "", f"{after.reward_margin(before, beta):.3f}", "")
    change = f"{after.loss / before.loss - 1:+.1%}" if before.loss else ""
    table.add_row(f"loss on {good} answers", f"{before.loss:.4f}", f"{after.loss:.4f}", change)
    for name, now in after.by_difference().items() if is_paired else ():
        shares(f"likelier per token, {now.num_pairs} of {name}", before.by_difference()[name].accuracy, now.accuracy)
    table.add_section()
    table.add_row(f"for comparison: the longer answer is {good}", "", _percent(after.length_accuracy), "")
    return table


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _softplus(value: float) -> float:
    """log(1 + e^value), without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None
