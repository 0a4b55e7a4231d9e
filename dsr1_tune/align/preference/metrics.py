"""What is measured before and after learning from preferences: does the model find the better answer likelier?

Two questions are kept apart. *Likelier*: which answer does the model itself prefer, per token or as a whole. *Raised*:
which answer did training make likelier than it was; β times that change is DPO's implicit reward (arXiv 2305.18290).
Beside both stands what length alone would say, because chosen answers are often the longer ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from dsr1_tune.align.preference.encode import FeedbackExample, PairExample
from dsr1_tune.align.preference.log_probs import log_probs
from dsr1_tune.runs.console import plain_table


@dataclass(frozen=True)
class AnswerLogProb:
    """An answer under a model: its log-probability in nats, and its number of tokens."""

    log_prob: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """The mean over its tokens."""
        return self.log_prob / self.num_tokens


@dataclass(frozen=True)
class HeldOutPairs:
    """The held-out pairs under a model, in their order."""

    chosen: tuple[AnswerLogProb, ...]
    rejected: tuple[AnswerLogProb, ...]
    differs: tuple[str, ...] = ()
    """What the rows say that the two answers differ in, where any of them does."""

    @property
    def num_pairs(self) -> int:
        """How many there are."""
        return len(self.chosen)

    @property
    def loss(self) -> float:
        """Mean loss over the tokens of the chosen answers, in nats per token."""
        return _mean_loss(self.chosen)

    @property
    def accuracy(self) -> float:
        """Share of the pairs whose chosen answer is the likelier one, per token."""
        return _share((a.per_token, b.per_token) for a, b in self._both())

    @property
    def accuracy_by_sum(self) -> float:
        """Share of the pairs whose chosen answer is the likelier one as a whole; it favours short answers."""
        return _share((a.log_prob, b.log_prob) for a, b in self._both())

    @property
    def length_accuracy(self) -> float:
        """Share of the pairs whose chosen answer is the longer one: what knowing nothing but length would score."""
        return _share((a.num_tokens, b.num_tokens) for a, b in self._both())

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.num_tokens for answer in (*self.chosen, *self.rejected))

    def by_difference(self) -> dict[str, HeldOutPairs]:
        """The pairs that differ in the same, by what that is."""
        return {
            name: HeldOutPairs(_where(self.chosen, self.differs, name), _where(self.rejected, self.differs, name))
            for name in sorted(set(self.differs) - {""})
        }

    def margins(self, before: HeldOutPairs, beta: float) -> list[float]:
        """For each pair, how much more its chosen answer was raised than its rejected one, times β."""
        return [
            beta * ((after_a.log_prob - was_a.log_prob) - (after_b.log_prob - was_b.log_prob))
            for (after_a, after_b), (was_a, was_b) in zip(self._both(), before._both(), strict=True)
        ]

    def reward_accuracy(self, before: HeldOutPairs) -> float:
        """Share of the pairs whose chosen answer was raised more than the rejected one."""
        return _share((margin, 0.0) for margin in self.margins(before, 1.0))

    def reward_margin(self, before: HeldOutPairs, beta: float) -> float:
        """The mean of `margins`."""
        return _mean(self.margins(before, beta))

    def preference_loss(self, before: HeldOutPairs, beta: float) -> float:
        """Mean of -log σ(margin): DPO's own loss on these pairs."""
        return _mean([_softplus(-margin) for margin in self.margins(before, beta)])

    def _both(self) -> Iterable[tuple[AnswerLogProb, AnswerLogProb]]:
        return zip(self.chosen, self.rejected, strict=True)

    def __str__(self) -> str:
        return f"chosen answer likelier per token: {self.accuracy:.1%}, loss on chosen answers {self.loss:.4f}"

    def as_json(self) -> dict[str, Any]:
        """For eval.json; "pairs" in the order of data/eval.jsonl."""
        return {
            "loss": self.loss,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "num_records": self.num_pairs,
            "num_tokens": self.num_tokens,
            "accuracy": self.accuracy,
            "accuracy_by_sum": self.accuracy_by_sum,
            "length_accuracy": self.length_accuracy,
            "pairs": [{"chosen": asdict(a), "rejected": asdict(b)} for a, b in self._both()],
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
    answers = [answer for one in examples for answer in (one.chosen_ids, one.rejected_ids)]
    pairs = [(one.prompt_ids, answer) for one in examples for answer in (one.chosen_ids, one.rejected_ids)]
    found = _answer_log_probs(log_probs(model, pairs, pad_token, advance), answers)
    differs = tuple(one.differs for one in examples)
    return HeldOutPairs(found[::2], found[1::2], differs if any(differs) else ())


@dataclass(frozen=True)
class HeldOutFeedback:
    """The held-out answers under a model, in their order, and whether people liked them."""

    answers: tuple[AnswerLogProb, ...]
    is_good: tuple[bool, ...]

    @property
    def num_pairs(self) -> int:
        """How many ways there are to put a good answer beside a bad one."""
        return sum(self.is_good) * (len(self.is_good) - sum(self.is_good))

    @property
    def loss(self) -> float:
        """Mean loss over the tokens of the good answers (of all, where none is good), in nats per token."""
        good = [answer for answer, is_good in zip(self.answers, self.is_good, strict=True) if is_good]
        return _mean_loss(good or self.answers)

    @property
    def accuracy(self) -> float:
        """Share of the ways to put a good answer beside a bad one in which the good one is likelier, per token."""
        return self._ranked([answer.per_token for answer in self.answers])

    @property
    def length_accuracy(self) -> float:
        """The same for the longer answer in place of the likelier one."""
        return self._ranked([answer.num_tokens for answer in self.answers])

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer.num_tokens for answer in self.answers)

    def rewards(self, before: HeldOutFeedback, beta: float) -> list[float]:
        """For each answer how much likelier it became, times β."""
        return [beta * (now.log_prob - was.log_prob) for now, was in zip(self.answers, before.answers, strict=True)]

    def reward_accuracy(self, before: HeldOutFeedback) -> float:
        """Share of the ways to put a good answer beside a bad one in which the good one was raised more."""
        return self._ranked(self.rewards(before, 1.0))

    def reward_margin(self, before: HeldOutFeedback, beta: float) -> float:
        """Mean reward of the good answers less that of the bad ones; not a number where one kind is missing."""
        rewards = self.rewards(before, beta)
        good = [reward for reward, is_good in zip(rewards, self.is_good, strict=True) if is_good]
        bad = [reward for reward, is_good in zip(rewards, self.is_good, strict=True) if not is_good]
        return _mean(good) - _mean(bad)

    def preference_loss(self, before: HeldOutFeedback, beta: float) -> float:
        """KTO's own loss on these answers, its KL left out."""
        rewards = zip(self.rewards(before, beta), self.is_good, strict=True)
        return _mean([math.exp(-_softplus(reward if is_good else -reward)) for reward, is_good in rewards])

    def _ranked(self, values: Sequence[float]) -> float:
        good = [value for value, is_good in zip(values, self.is_good, strict=True) if is_good]
        bad = [value for value, is_good in zip(values, self.is_good, strict=True) if not is_good]
        return _share((one, other) for one in good for other in bad)

    def __str__(self) -> str:
        ranked = f"good answers likelier than bad ones per token: {self.accuracy:.1%}, " if self.num_pairs else ""
        return f"{ranked}loss on good answers {self.loss:.4f}"

    def as_json(self) -> dict[str, Any]:
        """For eval.json; "answers" in the order of data/eval.jsonl."""
        return {
            "loss": self.loss,
            "perplexity": math.exp(min(self.loss, 700.0)),
            "num_records": len(self.answers),
            "num_tokens": self.num_tokens,
            "accuracy": _or_none(self.accuracy),
            "length_accuracy": _or_none(self.length_accuracy),
            "answers": [
                {**asdict(answer), "is_good": is_good}
                for answer, is_good in zip(self.answers, self.is_good, strict=True)
            ],
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
    pairs = [(one.prompt_ids, one.completion_ids) for one in examples]
    found = _answer_log_probs(log_probs(model, pairs, pad_token, advance), [one.completion_ids for one in examples])
    return HeldOutFeedback(found, tuple(one.feedback.is_good for one in examples))


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
    count = f"{after.num_pairs:,} pairs" if is_paired else f"{len(after.answers):,} answers"
    title = f"{'Held-out' if are_held_out else 'Training'} preferences ({count}, {after.num_tokens:,} tokens)"
    table = plain_table(title, "", "before", "after", "change")

    def shares(what: str, was: float, now: float) -> None:
        change = "" if math.isnan(now) else f"{100 * (now - was):+.1f} points"
        table.add_row(what, _percent(was), _percent(now), change)

    shares(f"{good} likelier than {bad}, per token", before.accuracy, after.accuracy)
    if is_paired:
        shares(f"{good} likelier than {bad}, as a whole", before.accuracy_by_sum, after.accuracy_by_sum)
    table.add_row(f"{good} raised more than {bad}", "", _percent(after.reward_accuracy(before)), "")
    table.add_row(f"mean margin of reward (β = {beta:g})", "", f"{after.reward_margin(before, beta):.3f}", "")
    table.add_row(
        f"loss on {good} answers", f"{before.loss:.4f}", f"{after.loss:.4f}", _change(before.loss, after.loss)
    )
    for name, now in after.by_difference().items() if is_paired else ():
        shares(f"likelier per token, {now.num_pairs} of {name}", before.by_difference()[name].accuracy, now.accuracy)
    table.add_section()
    table.add_row(f"for comparison: the longer answer is {good}", "", _percent(after.length_accuracy), "")
    return table


def _change(was: float, now: float) -> str:
    return f"{now / was - 1:+.1%}" if was else ""


def _answer_log_probs(values: Sequence[float], answers: Sequence[Sequence[int]]) -> tuple[AnswerLogProb, ...]:
    return tuple(AnswerLogProb(value, len(answer)) for value, answer in zip(values, answers, strict=True))


def _where(answers: Sequence[AnswerLogProb], names: Sequence[str], name: str) -> tuple[AnswerLogProb, ...]:
    return tuple(answer for answer, its in zip(answers, names, strict=True) if its == name)


def _mean_loss(answers: Sequence[AnswerLogProb]) -> float:
    return -sum(answer.log_prob for answer in answers) / sum(answer.num_tokens for answer in answers)


def _share(pairs: Iterable[tuple[float, float]]) -> float:
    """How often the first is the higher one; a tie counts half, and none at all is not a number."""
    return _mean([float(one > other) + 0.5 * float(one == other) for one, other in pairs])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _softplus(value: float) -> float:
    """log(1 + e^value), without overflow."""
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.1%}"


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None
