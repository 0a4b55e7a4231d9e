"""`score`: the scores that a reward model gives the answers in a file, as JSON lines and a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from dsr1_tune.align.preference import calibration
from dsr1_tune.align.preference.calibration import PairScores
from dsr1_tune.align.preference.encode import differs_in
from dsr1_tune.align.rewards.component import NoScore
from dsr1_tune.align.rewards.scoring import Ids, encode_answer, finite_score, max_context
from dsr1_tune.atomic import atomic_write, check_new
from dsr1_tune.config import Score
from dsr1_tune.data.output import dumps
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import DAMAGE, Drop, Feedback, Message, Place, Preference, Prompt, Record, Row
from dsr1_tune.errors import DataError, ModelError
from dsr1_tune.models.trained.reward_model import ScalarModel, check_reward, load_scalar
from dsr1_tune.runs.console import Narrator, plain_table, quiet_libraries

MAX_NAMED = 5


def run(
    model: str | Path,
    file: Path,
    out: Path,
    config: Score,
    mapping: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> Scores:
    """Score every answer in `file` with the reward model at `model`; one line per row goes to `out`.

    Rows that cannot be scored have a line too, which says why. Raises TuneError for everything the user can fix,
    before weights are loaded where that is possible; nothing is written then.
    """
    quiet_libraries()
    narrator = Narrator(console or Console())
    check_new(out)
    check_reward(model)
    rows = _read(file, mapping)
    scorer = load_scalar(model, progress=narrator.say)
    scores = score_rows(scorer, rows, config, narrator)
    _show(scores, narrator)
    with atomic_write(out, binary=True) as lines:
        for one in scores.rows:
            lines.write(dumps(one.as_json()) + b"\n")
    narrator.say(f"\nThe scores are in {out}.")
    return scores


# --- rows -------------------------------------------------------------------------------------------------------------


def _read(file: Path, mapping: Mapping[str, str] | None) -> list[Row | Drop]:
    """All rows, readable or not. Raises DataError for a damaged file, and where there is no answer at all."""
    rows = list(read([file], mapping))
    if damage := [row for row in rows if isinstance(row, Drop) and row.code in DAMAGE]:
        raise DataError(f"{damage[0].place}: {damage[0].detail}", hint="mend the file: rows behind that place are lost")
    if any(isinstance(row, (Record, Preference, Feedback)) for row in rows):
        return rows
    num_prompts = sum(isinstance(row, Prompt) for row in rows)
    if num_prompts:
        raise DataError(
            f"{file}: holds {num_prompts:,} prompts and no answer to score",
            hint="give rows with an answer, or name its column: --map answer=COLUMN",
        )
    first = next(row for row in rows if isinstance(row, Drop))
    raise DataError(
        f"{file}: none of the {len(rows):,} rows can be read; the first: {first.place}: {first.detail}", hint=first.fix
    )


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer of a row: its name there, and its score, or why it has none."""

    name: str
    text: str
    num_tokens: int = 0
    score: float | None = None
    problem: Drop | None = None


@dataclass(frozen=True)
class ScoredRow:
    """A row and what became of its answers; `problem` says why there are none, or why one has no score."""

    row: Row | Drop
    answers: tuple[ScoredAnswer, ...] = ()
    problem: Drop | None = None

    @property
    def margin(self) -> float | None:
        """Of a pair, how much higher the chosen answer scores."""
        scores = [answer.score for answer in self.answers]
        if len(scores) != 2 or scores[0] is None or scores[1] is None:
            return None
        return scores[0] - scores[1]

    def as_json(self) -> dict[str, Any]:
        """A line of the output."""
        place = self.row.place or Place("", 0, 0)
        line: dict[str, Any] = {"file": place.file, "line": place.line, "index": place.index}
        line["kind"] = "unreadable" if isinstance(self.row, Drop) else type(self.row).__name__.lower()
        if not isinstance(self.row, Drop):
            line["question"] = _question(self.row)
        for answer in self.answers:
            line[answer.name] = answer.text
        if isinstance(self.row, Feedback):
            line["label"] = self.row.is_good
        if len(self.answers) == 1:
            line["score"] = self.answers[0].score
        elif self.answers:
            line |= {f"{answer.name}_score": answer.score for answer in self.answers} | {"margin": self.margin}
        if self.problem:
            line["problem"] = {"code": self.problem.code, "detail": self.problem.detail, "fix": self.problem.fix}
        return line


@dataclass(frozen=True)
class Scores:
    """All rows of a file, scored, and what came of its pairs."""

    rows: tuple[ScoredRow, ...]
    pairs: PairScores | None

    @property
    def problems(self) -> list[ScoredRow]:
        """The rows that have no score."""
        return [row for row in self.rows if row.problem]

    def of(self, name: str, label: bool | None = None) -> list[float]:
        """The scores of the answers of this name: answer, chosen, rejected; of feedback those with this label."""
        return [
            answer.score
            for row in self.rows
            for answer in row.answers
            if answer.name == name
            and answer.score is not None
            and label == (row.row.is_good if isinstance(row.row, Feedback) else None)
        ]


def score_rows(model: ScalarModel, rows: Sequence[Row | Drop], config: Score, narrator: Narrator) -> Scores:
    """Score the answers of rows of any kind. Raises ModelError where no score is a number, DataError for no answer."""
    max_tokens = min(config.max_tokens, max_context(model))
    encoded = [_encode(model, row, max_tokens) for row in rows]
    ids = [one for _, answers in encoded for _, one in answers if not isinstance(one, Drop)]
    if not ids:
        drop = next(one for _, answers in encoded for _, one in answers if isinstance(one, Drop))
        raise DataError(f"no answer can be scored; the first: {drop.place}: {drop.detail}", hint=drop.fix)
    with narrator.counting("scoring", len(ids)) as advance:
        found = iter(model.score(ids, config.batch_size, advance).tolist())
    scored = tuple(_scored(row, answers, found) for row, answers in encoded)
    if all(answer.score is None for row in scored for answer in row.answers):
        raise ModelError("the reward model gives no answer a finite score", hint=_RETRAIN)
    return Scores(scored, _pairs(scored, config.margin))


Encoded = list[tuple[tuple[str, str], Ids | Drop]]
"""((name, text), token ids or why there are none) of each answer of a row."""


def _encode(model: ScalarModel, row: Row | Drop, max_tokens: int) -> tuple[Row | Drop, Encoded]:
    """A row with its answers as the model is shown them."""
    prompt: tuple[Message, ...] = ()
    answers: list[tuple[str, Message]] = []
    if isinstance(row, Record):
        prompt, answers = row.messages[:-1], [("answer", row.messages[-1])]
    elif isinstance(row, Feedback):
        prompt, answers = row.prompt, [("answer", row.completion)]
    elif isinstance(row, Preference):
        prompt, answers = row.prompt, [("chosen", row.chosen), ("rejected", row.rejected)]
    if isinstance(row, Drop):
        return row, []
    encoded: Encoded = []
    for name, message in answers:
        one = encode_answer(model, prompt, message, max_tokens, row.place, row.tools)
        if isinstance(one, Drop):
            one = _reworded(one).at(row.place, "score", row.row)
        encoded.append(((name, message.content), one))
    return row, encoded


def _reworded(drop: Drop) -> Drop:
    """The message about a row to train on, reworded for a row to score."""
    if drop.code == "too_long":
        return Drop(drop.code, drop.detail, "raise score.max_tokens, if the model's context has room", drop.path)
    return drop


def _scored(row: Row | Drop, encoded: Encoded, found: Any) -> ScoredRow:
    """Give the row its next scores."""
    if isinstance(row, Drop):
        return ScoredRow(row, problem=row)
    if isinstance(row, Prompt):
        return ScoredRow(row, problem=Drop("missing_field", "a prompt without an answer", "add an answer to score"))
    answers = []
    for (name, text), one in encoded:
        if isinstance(one, Drop):
            answers.append(ScoredAnswer(name, text, problem=one))
            continue
        score = finite_score(next(found))
        if isinstance(score, NoScore):
            answers.append(ScoredAnswer(name, text, len(one), problem=Drop("no_score", f"{name}: {score}", _RETRAIN)))
        else:
            answers.append(ScoredAnswer(name, text, len(one), score))
    return ScoredRow(row, tuple(answers), next((answer.problem for answer in answers if answer.problem), None))


_RETRAIN = "train the reward model again with a lower schedule.learning_rate, or base.dtype=float32"


def _pairs(rows: Sequence[ScoredRow], tie: float) -> PairScores | None:
    pairs = [row for row in rows if row.margin is not None]
    if not pairs:
        return None
    # Both answers stand behind the same prompt, whose tokens do not change which is longer.
    lengths = [(row.answers[0].num_tokens, row.answers[1].num_tokens) for row in pairs]
    chosen, rejected = ([float(row.answers[side].score or 0.0) for row in pairs] for side in (0, 1))
    return calibration.compare(
        chosen, rejected, lengths, [differs_in(getattr(row.row, "row", None)) or None for row in pairs], tie
    )


def _question(row: Row) -> str:
    """The user's last message before the answer."""
    if isinstance(row, Record):
        return row.question
    messages = row.messages if isinstance(row, Prompt) else row.prompt
    return next((message.content for message in reversed(messages) if message.role == "user"), "")


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(scores: Scores, narrator: Narrator) -> None:
    """How the scores are spread, how often pairs come out right, and which rows have none."""
    table = plain_table("Scores", "", "answers", "mean", "min", "25 %", "median", "75 %", "max")
    kinds = {
        "answers": scores.of("answer"),
        "chosen": scores.of("chosen"),
        "rejected": scores.of("rejected"),
        "labelled good": scores.of("answer", label=True),
        "labelled bad": scores.of("answer", label=False),
    }
    for name, values in kinds.items():
        if values:
            numbers = (statistics.fmean(values), min(values), *_quartiles(values), max(values))
            table.add_row(name, f"{len(values):,}", *(f"{number:+.3f}" for number in numbers))
    narrator.console.print(table)
    if pairs := scores.pairs:
        narrator.say(
            f"{pairs.num_pairs:,} pairs: accuracy {pairs.accuracy:.1%} (the longer answer: {pairs.length_only:.1%}), "
            f"mean margin {pairs.margin:+.3f}, calibration error {pairs.calibration_error:.3f}"
        )
        for name, bucket in pairs.differs.items():
            narrator.say(f"  {name}: {bucket.accuracy:.1%} of {bucket.num_pairs:,}")
    if problems := scores.problems:
        narrator.say(f"{len(problems):,} of {len(scores.rows):,} rows have no score:")
        for row in problems[:MAX_NAMED]:
            assert row.problem is not None
            narrator.say(f"  {row.row.place}: {row.problem.detail}; {row.problem.fix}")
        if len(problems) > MAX_NAMED:
            narrator.say(f"  and {len(problems) - MAX_NAMED:,} more; the output's lines say why in their problem")


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
