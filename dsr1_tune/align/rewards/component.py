"""What every component of a reward has in common: a weight, a name, the part of an answer it reads, and a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo

from dsr1_tune.config import ConfigSection
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.record import Feedback, Message, Preference, Record, Row

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to be scored: the conversation before it, what it says, and what is known of it."""

    prompt: tuple[Message, ...]
    answer: str
    expected: str | None = None
    """The checkable result, where the row has one."""
    num_tokens: int = 0
    has_ended: bool = True
    """Whether the model ended it itself, or it was cut at rollout.max_new_tokens."""
    opens_thought: bool = False
    """Whether the prompt ended with <think>: what is said begins behind a </think> then."""

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return question_in(self.prompt)


def question_in(prompt: Sequence[Message]) -> str:
    """The last thing the user said in the turns before an answer."""
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")


def answers_of(row: Row) -> dict[str, Message]:
    """The answers of a row by their names: answer, or chosen and rejected; a prompt has none."""
    match row:
        case Preference():
            return {"chosen": row.chosen, "rejected": row.rejected}
        case Feedback():
            return {"answer": row.completion}
        case Record():
            return {"answer": row.messages[-1]}
    return {}


Score = float | Exception
"""What a component gives an answer: a number, or what went wrong instead."""
BatchScorer = Callable[[Sequence[Answered]], list[Score]]
"""N answers → N scores, in order; it never raises."""


class NoScore(Exception):
    """A component has nothing to go by for this answer."""


class Component(ConfigSection):
    """One thing that is looked at in an answer. A kind of its own overrides `score`, or `open` to score in batches."""

    is_comparing: ClassVar[bool] = False
    """Whether it compares with the row's expected answer."""

    weight: Positive = 1.0
    """How much it counts among the components of its layer."""
    name: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    """What it is called in logs and tables; without one, its type."""
    of: Literal["said", "thought", "all"] = "said"
    """What it reads of an answer: what is said after the <think>thought</think>, the thought alone, or all of it."""

    @property
    def title(self) -> str:
        """Its name, or its type."""
        return self.name or str(getattr(self, "type", ""))

    @property
    def compares(self) -> bool:
        """Whether, as it is set, it needs the row's expected answer."""
        return self.is_comparing

    def text(self, one: Answered) -> str:
        """The part of the answer that it reads."""
        if one.opens_thought and thinking.CLOSE not in one.answer:  # cut inside the thought
            return "" if self.of == "said" else one.answer
        return read_part(one.answer, self.of)

    def expected(self, one: Answered) -> str:
        """The row's expected answer. Raises NoScore where there is none."""
        if one.expected is None or not one.expected.strip():
            raise NoScore("the row has no expected answer")
        return one.expected

    def objection(self, expected: str) -> str:
        """Why it cannot compare with an expected answer, or nothing; asked for all rows before a run."""
        return ""

    def score(self, one: Answered) -> float:
        """What one answer is worth to this component, from 0 to 1 unless it is unbounded."""
        raise NotImplementedError

    def open(self) -> BatchScorer:
        """Ready to score; whatever it needs is loaded. Raises ModelError where that cannot be."""
        return lambda answers: [attempt(self.score, one) for one in answers]


class Whether(Component):
    """A component that gives 1 or 0: whether something holds for an answer."""

    def score(self, one: Answered) -> float:
        """1 or 0."""
        return float(self._holds(one))

    def _holds(self, one: Answered) -> bool:
        raise NotImplementedError


def read_part(answer: str, part: str) -> str:
    """What is said after the thought, the thought itself, or all of an answer."""
    if part == "all":
        return answer
    if part == "said":
        return thinking.strip(answer)
    inside = "".join(answer[first:end] for first, end in thinking.find(answer))
    return inside.replace(thinking.OPEN, "").replace(thinking.CLOSE, "")


def attempt(score: Callable[[Answered], Any], one: Answered) -> Score:
    """The score of one answer, or the error that it raised: one answer must not end a run, but Ctrl-C may."""
    try:
        return as_number(score(one))
    except Exception as error:
        return error
    except SystemExit as error:
        return NoScore(f"it called exit({error.code!r})"[:200])
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # such as asyncio's CancelledError
        return NoScore(f"it raised {type(error).__name__}")


def as_number(value: Any) -> float:
    """A number or truth value, also numpy's and torch's. Raises NoScore for None, texts, NaN and infinities."""
    if value is None or isinstance(value, (str, bytes)):
        raise NoScore(f"it gave {value!r}, which is no number")
    number = float(value)
    if not math.isfinite(number):
        raise NoScore(f"it gave {number}, which is no number")
    return number


def at_once(score: Callable[[Sequence[Any]], Sequence[Score]], items: Sequence[Any]) -> list[Score]:
    """Scores of all at once; where that fails, of each alone, so that one cannot take the others with it."""
    try:
        return list(score(items))
    except Exception as error:
        if len(items) == 1:
            return [error]
        return [found for item in items for found in at_once(score, [item])]


def in_batches(
    score: Callable[[Sequence[Any]], Sequence[Score]],
    items: Sequence[Any],
    mapped: Callable[[float], float],
    blank: Score = 0.0,
) -> list[Score]:
    """The mapped numbers that `score` gives the items, asked for all of them `at_once`; None is worth `blank`."""
    asked = [item for item in items if item is not None]
    numbers = iter(at_once(score, asked) if asked else [])
    return [blank if item is None else _mapped(next(numbers), mapped) for item in items]


def _mapped(number: Score, mapped: Callable[[float], float]) -> Score:
    if isinstance(number, Exception):
        return number
    is_number = isinstance(number, float) and math.isfinite(number)
    return mapped(number) if is_number else NoScore(f"it gave {number}, which is no number")


def between(number: float, low: float, high: float) -> float:
    """0 at low, 1 at high and linear in between; low may be the greater one."""
    return min(1.0, max(0.0, (number - low) / (high - low)))


class Mapped(Component):
    """A component whose own numbers may be any: how they become scores from 0 to 1."""

    scale: tuple[float, float] | None = None
    """[low, high]: low and less is 0, high and more is 1, between them linear; low may be the greater one."""
    sigmoid: bool = False
    """The score is 1 / (1 + exp(-number))."""
    unbounded: bool = False
    """The number is the score, whatever it is; it must then stand in the last layer, or under gate: none."""

    def _check(self) -> None:
        ways = [name for name in ("scale", "sigmoid", "unbounded") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are given; a number becomes a score in one way only")
        if self.scale and self.scale[0] == self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} has no width")

    def mapped(self, number: float) -> float:
        """The score. Raises NoScore for a number that is outside 0 to 1 where no way to map it is said."""
        if self.scale:
            return between(number, *self.scale)
        if self.sigmoid:
            return 1 / (1 + math.exp(-number)) if number > -700 else 0.0
        if not self.unbounded and not 0 <= number <= 1:
            raise NoScore(f"it gave {number:g}, which is not from 0 to 1; set scale, sigmoid or unbounded")
        return number


def beside(info: ValidationInfo, path: str) -> str:
    """A path as the reward file means it: seen from its folder, or from the current one where only that holds it."""
    folder = Path((info.context or {}).get("folder", "."))
    given = Path(path).expanduser()
    near = (folder / given).absolute()
    return str(given.absolute()) if not near.exists() and given.exists() else str(near)
