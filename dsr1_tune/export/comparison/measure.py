"""One model measured: the loss of every row, its likeliest tokens, its distributions, its answers, its speed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import IO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dsr1_tune.atomic import is_disk_full
from dsr1_tune.config import Compare, Encoding
from dsr1_tune.data.encode.example import IGNORED, Example, encode_all, prompt_ids
from dsr1_tune.data.encode.template import TEMPLATE_ERRORS
from dsr1_tune.data.record import Place, Record
from dsr1_tune.errors import DataError, RunError
from dsr1_tune.export.comparison.backends import Scorer
from dsr1_tune.export.comparison.rows import Rows, RowSet
from dsr1_tune.export.comparison.statistics import as_kept, divergence_T, log_probs

MAX_KEPT_BYTES = 4 * 2**30
"""Distributions of one model on disk; where they would take more, every second, third, ... token's is kept."""
_PIECE = 128  # tokens whose distributions are in memory at once

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowScore:
    """The loss of one row, summed over the tokens that are learned."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    nats: float
    num_tokens: int
    num_bytes: int
    """Of the text, in UTF-8: what models with other tokens are compared by."""
    top_T: Ids
    """The likeliest token at each place."""
    divergence: float = 0.0
    """Summed KL divergence from the other model, in nats, over `num_diverged` tokens."""
    num_diverged: int = 0


@dataclass(frozen=True)
class Answer:
    """A model's answer to a row's last question."""

    text: str
    num_tokens: int
    was_cut: bool


@dataclass
class Measured:
    """All that was measured of one model; the rows by the place where they stand."""

    name: str
    num_bytes: int
    domain: dict[str, RowScore] = field(default_factory=dict)
    general: dict[str, RowScore] = field(default_factory=dict)
    answers: dict[Place, Answer] = field(default_factory=dict)
    reads_per_second: float | None = None
    writes_per_second: float | None = None
    num_lost: int = 0
    """Rows that its chat template refuses, or that are too long for it."""


def measure(
    scorer: Scorer, name: str, rows: Rows, compare: Compare, kept: Distributions, counting: Callable[[int], None]
) -> Measured:
    """Score the rows and answer the asked ones. The first model leaves its distributions in `kept`, which the second
    is compared with. Raises DataError if no row of a set can be encoded for the model.
    """
    measured = Measured(name, scorer.num_bytes)
    sets = {"domain": rows.domain, "general": rows.general}
    encoded = {which: _encoded(one, scorer, rows, measured) for which, one in sets.items() if one is not None}
    examples_of_all = (example for examples in encoded.values() for example in examples)
    kept.num_expected = sum(label != IGNORED for example in examples_of_all for label in example.labels[1:])
    num_read, began = 0, time.perf_counter()
    for which, examples in encoded.items():
        scores = measured.domain if which == "domain" else measured.general
        for example in examples:
            place = f"{which} {example.record.place} {example.record.place.index}"  # a file may be one line
            while place in scores:  # the parts of a record that was split
                place += "'"
            scores[place] = score_row(scorer, example, kept, place)
            num_read += len(example.input_ids)
            counting(1)
    measured.reads_per_second = _per_second(num_read, began)
    num_written, began = 0, time.perf_counter()
    for record in rows.asked:
        answer = answer_row(scorer, record, rows.encoding, compare.answer_tokens)
        if answer is not None:
            measured.answers[record.place] = answer
            num_written += answer.num_tokens
        counting(1)
    measured.writes_per_second = _per_second(num_written, began) if num_written else None
    return measured


def _per_second(number: int, began: float) -> float:
    return number / max(time.perf_counter() - began, 1e-9)


def _encoded(rows: RowSet, scorer: Scorer, settings: Rows, measured: Measured) -> list[Example]:
    max_tokens = min(rows.max_tokens, scorer.context)
    encoded = encode_all(rows.records, scorer.tokenizer, max_tokens, settings.encoding)
    if not encoded.examples:
        drop = encoded.drops[0]
        raise DataError(f"{rows.name}: no row is of use to {measured.name}; the first: {drop.detail}", hint=drop.fix)
    measured.num_lost += len(encoded.drops)
    return encoded.examples


def score_row(scorer: Scorer, example: Example, kept: Distributions, place: str) -> RowScore:
    """A row's loss and likeliest tokens; its distributions go to `kept`, or are compared with those that are there."""
    labels_T = torch.tensor(example.labels[1:])
    places_N = (labels_T != IGNORED).nonzero().squeeze(1)
    wanted_N = labels_T[places_N]
    nats, tops, divergence, num_diverged = 0.0, [], 0.0, 0
    is_known = kept.begin(place, example.input_ids)
    for logits_TV, at in zip(scorer.logits(example.input_ids, places_N, _PIECE), count(0, _PIECE), strict=False):
        log_probs_TV = log_probs(logits_TV).cpu()
        nats -= float(log_probs_TV.gather(1, wanted_N[at : at + _PIECE, None]).double().sum())
        tops.append(log_probs_TV.argmax(-1).numpy())
        if kept.is_full:
            if is_known:
                found = kept.diverge(place, at, log_probs_TV)
                divergence, num_diverged = divergence + found[0], num_diverged + found[1]
        else:
            kept.add(place, at, log_probs_TV)
    return RowScore(
        example.input_ids,
        example.labels,
        nats,
        len(wanted_N),
        sum(len(said.said.encode()) for said in example.record.messages if said.role == "assistant"),
        np.concatenate(tops),
        divergence,
        num_diverged,
    )


def answer_row(scorer: Scorer, record: Record, encoding: Encoding, max_new_tokens: int) -> Answer | None:
    """The greedy answer to a record's last question; None if it fills the context or the template refuses it."""
    try:
        ids = prompt_ids(record, scorer.tokenizer, encoding)
    except TEMPLATE_ERRORS:
        return None
    room = min(max_new_tokens, scorer.context - len(ids))
    if room < 1:
        return None
    said = scorer.answer(ids, room)
    return Answer(scorer.tokenizer.decode(said, skip_special_tokens=True).strip(), len(said), len(said) >= room)


class Distributions:
    """The first model's next-token distributions on disk, over the whole vocabulary, in float16.

    They are in a file without a name, which is gone with the process however that ends.
    """

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.is_full = False
        """Whether the first model has left all of its distributions."""
        self.num_expected = 0
        """How many tokens are to come."""
        self.step = 0
        """Every `step`-th token's is kept."""
        self._num_seen = 0
        self._ids: dict[str, tuple[int, ...]] = {}
        self._found: dict[tuple[str, int], tuple[int, tuple[int, ...], int]] = {}
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="dsr1-tune-")  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def begin(self, place: str, ids: tuple[int, ...]) -> bool:
        """Whether the row that begins was seen by the first model, with the very same tokens."""
        if not self.is_full:
            self._ids[place] = ids
        return self._ids.get(place) == ids

    def add(self, place: str, at: int, log_probs_TV: Tensor) -> None:
        """Keep what the first model says at a piece of a row."""
        num_words = log_probs_TV.shape[1]
        if not self.step:
            room = min(self.max_bytes, shutil.disk_usage(tempfile.gettempdir()).free // 2)
            self.step = max(1, -(-self.num_expected * num_words * 2 // max(room, 1)))
        chosen = tuple(t for t in range(len(log_probs_TV)) if (self._num_seen + t) % self.step == 0)
        self._num_seen += len(log_probs_TV)
        self._found[place, at] = (self._file.tell(), chosen, num_words)
        try:
            self._file.write(as_kept(log_probs_TV[list(chosen)]).numpy().tobytes())
            self._file.flush()
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise RunError(
                f"{tempfile.gettempdir()}: no room for the models' distributions",
                hint="free some space there, or set TMPDIR to a folder on another disk",
            ) from error

    def diverge(self, place: str, at: int, log_probs_TV: Tensor) -> tuple[float, int]:
        """The summed divergence of the second model from the first at a piece of a row, and over how many tokens."""
        start, chosen, num_words = self._found.get((place, at), (0, (), 0))
        if not chosen:
            return 0.0, 0
        self._file.seek(start)
        data = bytearray(self._file.read(len(chosen) * num_words * 2))
        kept_TV = torch.frombuffer(data, dtype=torch.float16).reshape(len(chosen), num_words)
        num_words = min(num_words, log_probs_TV.shape[1])  # engines pad the vocabulary differently
        second_TV = as_kept(log_probs_TV[list(chosen)])
        return float(divergence_T(kept_TV[:, :num_words], second_TV[:, :num_words]).double().sum()), len(chosen)


def same_tokens(a: Measured, b: Measured) -> bool:
    """Whether both models read every row that both could as the same tokens."""
    sets = ((a.domain, b.domain), (a.general, b.general))
    pairs = [(first[place], second[place]) for first, second in sets for place in first.keys() & second.keys()]
    return bool(pairs) and all(one.input_ids == two.input_ids and one.labels == two.labels for one, two in pairs)
