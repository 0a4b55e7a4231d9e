"""The result of comparing two models: every number with its 95 % bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dsr1_tune.data.record import Record
from dsr1_tune.export.comparison.answer_scores import Task, distinct, rouge_l, scores
from dsr1_tune.export.comparison.measure import Measured, RowScore, same_tokens
from dsr1_tune.export.comparison.rows import Rows
from dsr1_tune.export.comparison.statistics import (
    Estimate,
    Floats,
    difference,
    estimate,
    increase,
    mean,
    ratio,
    resampled,
)
from dsr1_tune.text.amount import amount
from dsr1_tune.text.answer_kind import Kind
from dsr1_tune.text.words import words

_WIDER = 1.25  # times, from which weights are said to be held in a wider number format than they are stored in


@dataclass(frozen=True)
class Model:
    """One of the two."""

    name: str
    num_bytes: int
    """Of its weights in memory."""
    stored_bytes: int | None
    reads_per_second: float | None
    """Tokens of given text that it reads, row by row."""
    writes_per_second: float | None
    """Tokens of greedy answers, one answer at a time."""


@dataclass(frozen=True)
class SetResult:
    """One set of rows under both models."""

    name: str
    num_rows: int
    num_tokens: int
    """That are learned, as A reads them."""
    loss_a: Estimate
    """Nats per token."""
    loss_b: Estimate
    increase: Estimate
    """By which share B's loss is above A's; per byte of text where the models have other tokens."""
    agreement: Estimate | None
    """Share of tokens whose likeliest next token is the same; None where the models have other tokens."""
    divergence: Estimate | None
    """KL(A‖B) per token, in nats."""
    num_diverged: int
    """Tokens that the divergence is the mean of."""


@dataclass(frozen=True)
class Score:
    """One score of both models on the rows that it fits."""

    name: str
    num_rows: int
    a: Estimate
    b: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Style:
    """How a model's answers read as a whole."""

    distinct_1: float | None
    distinct_2: float | None
    mean_words: float
    mean_tokens: float
    num_cut: int
    """Answers that did not end within answer_tokens."""
    num_empty: int


@dataclass(frozen=True)
class AnswerPair:
    """A question and both models' answers to it."""

    question: str
    reference: str
    kind: Kind
    a: str
    b: str
    scores_a: dict[str, float]
    scores_b: dict[str, float]


@dataclass(frozen=True)
class Answers:
    """The greedy answers of both models."""

    identical: Estimate
    similarity: Estimate
    """ROUGE-L between the two answers."""
    scores: tuple[Score, ...]
    style_a: Style
    style_b: Style
    rows: tuple[AnswerPair, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything that was found; `missed` has a line for every gate that B missed."""

    a: Model
    b: Model
    domain: SetResult | None
    general: SetResult
    answers: Answers | None
    remarks: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    asked: dict[str, float | None] | None = None
    """The gates, by name."""

    @property
    def has_gates(self) -> bool:
        """Whether anything was asked of B."""
        return any(limit is not None for limit in (self.asked or {}).values())

    def as_json(self) -> dict[str, Any]:
        """For compare.json; infinities, which JSON has no word for, become null."""
        tree: dict[str, Any] = _finite({"format": "dsr1-tune comparison 1", **asdict(self)})
        return tree


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def compared(a: Measured, b: Measured, sizes: tuple[int | None, int | None], rows: Rows, seed: int) -> Comparison:
    """Compare what was measured of B with what was measured of A."""
    is_shared = same_tokens(a, b)
    remarks = list(rows.remarks)
    if not is_shared:
        remarks.append(
            "the models read the rows as other tokens (vocabulary or chat template differ): agreement and divergence "
            "are left out, and losses are compared per byte of text"
        )
    for one in (a, b):
        if one.num_lost:
            lost = amount(one.num_lost, "row")
            remarks.append(f"left out, as too long for {one.name} or refused by its template: {lost}")
    models = [
        Model(one.name, one.num_bytes, stored, one.reads_per_second, one.writes_per_second)
        for one, stored in zip((a, b), sizes, strict=True)
    ]
    for model in models:
        if model.stored_bytes and model.num_bytes > _WIDER * model.stored_bytes:
            remarks.append(
                f"{model.name} is held here in a wider number format than it is stored in; an engine that computes in "
                "that format holds about what it takes on disk"
            )
    domain = _set(rows.domain.name, a.domain, b.domain, is_shared, seed) if rows.domain else None
    general = _set(rows.general.name, a.general, b.general, is_shared, seed)
    answers = _answers(rows.asked, a, b, seed)
    for model, style in zip(models, (answers.style_a, answers.style_b) if answers else (), strict=False):
        if answers and 2 * style.num_cut > len(answers.rows):
            remarks.append(
                f"{model.name} was cut in {style.num_cut:,} of {amount(len(answers.rows), 'answer')}: raise "
                "compare.answer_tokens, above all for models that think before they answer"
            )
    return Comparison(models[0], models[1], domain, general, answers, tuple(remarks))


def _set(name: str, a: dict[str, RowScore], b: dict[str, RowScore], is_shared: bool, seed: int) -> SetResult:
    places = [place for place in a if place in b]
    rows_a, rows_b = [a[place] for place in places], [b[place] for place in places]
    counts_SN = resampled(len(places), seed)
    nats_a, nats_b = (_column(rows, "nats") for rows in (rows_a, rows_b))
    tokens_a, tokens_b = (_column(rows, "num_tokens") for rows in (rows_a, rows_b))
    agreement = divergence = None
    diverged_N = _column(rows_b, "num_diverged")
    if is_shared:
        same_N = np.array([(one.top_T == two.top_T).sum() for one, two in zip(rows_a, rows_b, strict=True)], np.float64)
        agreement = estimate(counts_SN, ratio(same_N, tokens_a))
        if diverged_N.sum():
            divergence = estimate(counts_SN, ratio(_column(rows_b, "divergence"), diverged_N))
    return SetResult(
        name,
        len(places),
        int(tokens_a.sum()),
        estimate(counts_SN, ratio(nats_a, tokens_a)),
        estimate(counts_SN, ratio(nats_b, tokens_b)),
        # The same rows have the same bytes, and where tokens are shared the same tokens: both cancel out.
        estimate(counts_SN, increase(nats_a, nats_b)),
        agreement,
        divergence,
        int(diverged_N.sum()),
    )


def _column(rows: Sequence[RowScore], name: str) -> Floats:
    return np.array([getattr(row, name) for row in rows], np.float64)


def _answers(asked: Sequence[Record], a: Measured, b: Measured, seed: int) -> Answers | None:
    both = [record for record in asked if record.place in a.answers and record.place in b.answers]
    if not both:
        return None
    pairs = [_pair(record, a.answers[record.place].text, b.answers[record.place].text) for record in both]
    counts_SN = resampled(len(pairs), seed)
    names = dict.fromkeys(name for pair in pairs for name in pair.scores_a)
    return Answers(
        estimate(counts_SN, mean(np.array([pair.a == pair.b for pair in pairs], np.float64))),
        estimate(counts_SN, mean(np.array([rouge_l(pair.a, pair.b) for pair in pairs], np.float64))),
        tuple(_score(name, [pair for pair in pairs if name in pair.scores_a], seed) for name in names),
        _style(a, both),
        _style(b, both),
        tuple(pairs),
    )


def _pair(record: Record, a: str, b: str) -> AnswerPair:
    task = Task.of(record.question, record.answer)
    return AnswerPair(record.question, task.reference, task.kind, a, b, scores(task, a), scores(task, b))


def _score(name: str, pairs: Sequence[AnswerPair], seed: int) -> Score:
    a_N = np.array([pair.scores_a[name] for pair in pairs])
    b_N = np.array([pair.scores_b[name] for pair in pairs])
    counts_SN = resampled(len(pairs), seed)
    found = (estimate(counts_SN, measure) for measure in (mean(a_N), mean(b_N), difference(a_N, b_N)))
    return Score(name, len(pairs), *found)


def _style(model: Measured, asked: Sequence[Record]) -> Style:
    answers = [model.answers[record.place] for record in asked]
    texts = [answer.text for answer in answers]
    return Style(
        distinct(texts, 1),
        distinct(texts, 2),
        sum(len(words(text)) for text in texts) / len(texts),
        sum(answer.num_tokens for answer in answers) / len(answers),
        sum(answer.was_cut for answer in answers),
        sum(not text for text in texts),
    )
