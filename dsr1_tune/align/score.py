"""`score`: the scores that a reward model gives the answers in a file, as JSON lines and a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from dsr1_tune.align.preference import calibration
from dsr1_tune.align.preference.calibration import PairScores
from dsr1_tune.align.preference.encode import differs_in
from dsr1_tune.align.rewards.component import NoScore, answers_of, question_in
from dsr1_tune.align.rewards.scoring import Ids, encode_answer, max_context, score_encoded
from dsr1_tune.atomic import atomic_write, new_file
from dsr1_tune.config import Score
from dsr1_tune.data.output import dumps
from dsr1_tune.data.read.read import read
from dsr1_tune.data.record import DAMAGE, Drop, Feedback, Message, Place, Prompt, Row, prompt_of
from dsr1_tune.errors import DataError, ModelError
from dsr1_tune.models.trained.reward_model import ScalarModel, check_reward, load_scalar
from dsr1_tune.runs.console import Narrator, plain_table, quiet_libraries
from dsr1_tune.text.amount import amount

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
    with new_file(out):
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
    if any(not isinstance(row, (Drop, Prompt)) for row in rows):
        return rows
    num_prompts = sum(isinstance(row, Prompt) for row in rows)
    if num_prompts:
        raise DataError(
            f"{file}: holds {amount(num_prompts, 'prompt')} and no answer to score",
            hint="give rows with an answer, or name its column: --map answer=COLUMN",
        )
    first = next(row for row in rows if isinstance(row, Drop))
    what = f"of {amount(len(rows), 'row')} none can be read; the first: {first.place}: {first.detail}"
    raise DataError(f"{file}: {what}", hint=first.fix)


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
        scores = [answer.score for answer in self.answers if answer.score is not None]
        return scores[0] - scores[1] if len(scores) == 2 else None

    def as_json(self) -> dict[str, Any]:
        """A line of the output."""
        line: dict[str, Any] = asdict(self.row.place or Place("", 0, 0))
        line["kind"] = "unreadable" if isinstance(self.row, Drop) else type(self.row).__name__.lower()
        if not isinstance(self.row, Drop):
            line["question"] = question_in(prompt_of(self.row))
        line |= {answer.name: answer.text for answer in self.answers}
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


def score_rows(model: ScalarModel, rows: Sequence[Row | Drop], config: Score, narrator: Narrator) -> Scores:
    """Score the answers of rows of any kind. Raises ModelError where no score is a number, DataError for no answer."""
    max_tokens = min(config.max_tokens, max_context(model))
    answers = [(row, *one) for row in rows if not isinstance(row, Drop) for one in answers_of(row).items()]
    encoded = [_encode(model, row, message, max_tokens) for row, _, message in answers]
    num_usable = sum(not isinstance(one, Drop) for one in encoded)
    if not num_usable:
        drop = next(one for one in encoded if isinstance(one, Drop))
        raise DataError(f"no answer can be scored; the first: {drop.place}: {drop.detail}", hint=drop.fix)
    with narrator.counting("scoring", num_usable) as advance:
        scores = score_encoded(model, encoded, config.batch_size, advance)
    told = zip(answers, encoded, scores, strict=True)
    found = iter([_scored(name, message.said, ids, score) for (_, name, message), ids, score in told])
    scored = tuple(_scored_row(row, found) for row in rows)
    if all(answer.score is None for row in scored for answer in row.answers):
        raise ModelError("the reward model gives no answer a finite score", hint=_RETRAIN)
    return Scores(scored, _pairs(scored, config.margin))


def _encode(model: ScalarModel, row: Row, answer: Message, max_tokens: int) -> Ids | Drop:
    one = encode_answer(model, prompt_of(row), answer, max_tokens, row.place, row.tools)
    if not isinstance(one, Drop):
        return one
    fix = "raise score.max_tokens, if the model's context has room" if one.code == "too_long" else one.fix
    return replace(one, fix=fix).at(row.place, "score", row.row)


def _scored(name: str, text: str, ids: Ids | Drop, score: float | NoScore | Drop) -> ScoredAnswer:
    if isinstance(ids, Drop):
        return ScoredAnswer(name, text, problem=ids)
    if isinstance(score, float):
        return ScoredAnswer(name, text, len(ids), score)
    return ScoredAnswer(name, text, len(ids), problem=Drop("no_score", f"{name}: {score}", _RETRAIN))


def _scored_row(row: Row | Drop, found: Iterator[ScoredAnswer]) -> ScoredRow:
    """The row with the next answers, which are its own."""
    if isinstance(row, Drop):
        return ScoredRow(row, problem=row)
    answers = tuple(islice(found, len(answers_of(row))))
    if not answers:
        return ScoredRow(row, problem=Drop("missing_field", "a prompt without an answer", "add an answer to score"))
    return ScoredRow(row, answers, next((answer.problem for answer in answers if answer.problem), None))


_RETRAIN = "train the reward model again with a lower schedule.learning_rate, or base.dtype=float32"


def _pairs(rows: Sequence[ScoredRow], tie: float) -> PairScores | None:
    pairs = [row for row in rows if row.margin is not None]
    if not pairs:
        return None
    # Both answers stand behind the same prompt, whose tokens do not change which is longer.
    lengths = [(row.answers[0].num_tokens, row.answers[1].num_tokens) for row in pairs]
    chosen, rejected = ([float(row.answers[side].score or 0.0) for row in pairs] for side in (0, 1))
    differs = [differs_in(row.row.row) or None for row in pairs]
    return calibration.compare(chosen, rejected, lengths, differs, tie)


# --- what is shown ----------------------------------------------------------------------------------------------------


def _show(scores: Scores, narrator: Narrator) -> None:
    table = plain_table("Scores", "", "answers", "mean", "min", "25 %", "median", "75 %", "max")
    kinds: dict[str, list[float]] = {
        name: [] for name in ("answers", "chosen", "rejected", "labelled good", "labelled bad")
    }
    for row in scores.rows:
        for answer in row.answers:
            if answer.score is not None:
                kinds[_kind(row.row, answer.name)].append(answer.score)
    for name, values in kinds.items():
        if values:
            several = values if len(values) > 1 else values * 2
            quartiles = statistics.quantiles(several, n=4, method="inclusive")
            numbers = (statistics.fmean(values), min(values), *quartiles, max(values))
            table.add_row(name, f"{len(values):,}", *(f"{number:+.3f}" for number in numbers))
    narrator.console.print(table)
    if pairs := scores.pairs:
        narrator.say(
            f"{amount(pairs.num_pairs, 'pair')}: accuracy {pairs.accuracy:.1%} "
            f"(the longer answer: {pairs.length_only:.1%}), "
            f"mean margin {pairs.margin:+.3f}, calibration error {pairs.calibration_error:.3f}"
        )
        for name, bucket in pairs.differs.items():
            narrator.say(f"  {name}: {bucket.accuracy:.1%} of {bucket.num_pairs:,}")
    if problems := scores.problems:
        narrator.say(f"without a score: {len(problems):,} of {amount(len(scores.rows), 'row')}")
        for row in problems[:MAX_NAMED]:
            assert row.problem is not None
            narrator.say(f"  {row.row.place}: {row.problem.detail}; {row.problem.fix}")
        if len(problems) > MAX_NAMED:
            narrator.say(f"  and {len(problems) - MAX_NAMED:,} more; the output's lines say why in their problem")


def _kind(row: Row | Drop, name: str) -> str:
    if isinstance(row, Feedback):
        return "labelled good" if row.is_good else "labelled bad"
    return "answers" if name == "answer" else name
