"""Components that look at the task: is the result right, and what do a reward model or the user's own code say?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from dsr1_tune.align.rewards.component import (
    Answered,
    BatchScorer,
    Mapped,
    NoScore,
    Score,
    Whether,
    as_number,
    beside,
    in_batches,
)
from dsr1_tune.align.rewards.form import compiled
from dsr1_tune.data.rules.packs import function_of
from dsr1_tune.errors import ConfigError, ModelError
from dsr1_tune.text.composed import composed
from dsr1_tune.text.equality import Tolerance, equal, is_comparable
from dsr1_tune.text.final_answer import final_answer, same_text


class Exact(Whether):
    """1 where the answer comes down to the expected text; case, width, blanks, markup and full stops do not count."""

    is_comparing: ClassVar[bool] = True
    type: Literal["exact"]

    def _holds(self, one: Answered) -> bool:
        wanted = self.expected(one)
        want = {same_text(wanted), same_text(final_answer(wanted).text)}
        return same_text(final_answer(self.text(one)).text) in want


class Numeric(Whether):
    """1 where the answer's final number (or list, ratio, range, date, formula) is the expected one."""

    is_comparing: ClassVar[bool] = True
    type: Literal["numeric"]
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    """Difference that still counts as the same."""
    relative: Annotated[float, Field(ge=0)] = 0.0
    """Difference that still counts as the same, as a share of the expected number."""
    percent: bool = True
    """Whether 50% is 0.5 (and 50, where the expected answer is a number above 1 or names %); false: 50 only."""

    def _holds(self, one: Answered) -> bool:
        wanted = self.expected(one)
        if objection := self.objection(wanted):
            raise NoScore(f"the expected answer {objection}")
        return equal(self.text(one), wanted, Tolerance(self.tolerance, self.relative, self.percent))

    def objection(self, expected: str) -> str:
        """Where it holds no number, nothing can be compared with it."""
        return "" if is_comparable(expected) else f"holds no number: {expected.strip()[:60]!r}"


PLACE = "{expected}"


class Regex(Whether):
    """1 where a regular expression is found in the answer; {expected} in it is the row's expected answer."""

    type: Literal["regex"]
    pattern: str
    """A regular expression of Python; \\A and \\Z stand for the answer's beginning and end."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        compiled(value.replace(PLACE, "0"))
        return value

    @property
    def compares(self) -> bool:
        """Whether the pattern names the expected answer."""
        return PLACE in self.pattern

    def _holds(self, one: Answered) -> bool:
        if not self.compares:
            return re.search(self.pattern, self.text(one)) is not None
        wanted = re.escape(composed(self.expected(one)).strip())
        return re.search(self.pattern.replace(PLACE, wanted), composed(self.text(one))) is not None


GIVEN = ("question", "answer", "expected", "info")


class Function(Mapped):
    """What a Python function of the user's own gives an answer. It runs with all the rights of the command."""

    type: Literal["function"]
    of: Literal["said", "thought", "all"] = "all"
    """What it is given as the answer: all of it, or only what is said, or the thought."""
    call: str
    """`module:function`, or `file.py:function` beside the reward file. It takes, by name, any of question, answer,
    expected (a text or None) and info (the Answered: prompt, num_tokens, has_ended), and returns a number from 0 to 1,
    or any that scale or sigmoid maps."""
    needs_expected: bool = False
    """Whether rows without an expected answer are refused."""

    @field_validator("call")
    @classmethod
    def _can_be_called(cls, value: str, info: ValidationInfo) -> str:
        file, colon, name = value.rpartition(":")
        if not file or not name.isidentifier():
            raise ValueError("is neither module:function nor file.py:function")
        if file.endswith(".py"):
            value = f"{Path(beside(info, file)).resolve()}{colon}{name}"
        try:
            _taken(function_of(value))
        except ConfigError as error:
            raise ValueError(error.message) from None
        return value

    @property
    def compares(self) -> bool:
        """Whether rows without an expected answer are refused."""
        return self.needs_expected

    def score(self, one: Answered) -> float:
        """What the function gives, mapped."""
        function, names = self._called
        given = {"question": one.question, "answer": self.text(one), "expected": one.expected, "info": one}
        return self.mapped(as_number(function(**{name: given[name] for name in names})))

    @cached_property
    def _called(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        function = function_of(self.call)
        return function, _taken(function)


def _taken(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of GIVEN a function takes. Raises ConfigError where it needs others, or takes none of them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(f"{function!r} does not say what it takes") from None
    by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    unknown = [
        one.name
        for one in parameters
        if one.default is one.empty and (one.kind is one.POSITIONAL_ONLY or (one in by_name and one.name not in GIVEN))
    ]
    taken = tuple(one.name for one in by_name if one.name in GIVEN)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
    is_of_lists = any(one.name in ("prompts", "completions") for one in by_name)  # what TRL's reward functions take
    name = getattr(function, "__name__", "the function")
    given = f"it is given, by name, what it takes of {', '.join(GIVEN)}"
    if is_of_lists:
        given += ", for one answer at a time, not lists of them as in TRL"
    if unknown:
        raise ConfigError(f"{name} needs {', '.join(unknown)}; {given}")
    if not taken and (is_of_lists or not takes_any):
        raise ConfigError(f"{name} takes nothing that it could judge; {given}")
    return GIVEN if takes_any else taken


class RewardModel(Mapped):
    """What a reward model, made with `dsr1-tune reward`, gives the answer under its prompt."""

    type: Literal["reward_model"]
    path: str
    """The run folder, seen from the reward file's folder or from the current one."""

    @field_validator("path")
    @classmethod
    def _is_one(cls, value: str, info: ValidationInfo) -> str:
        folder = Path(beside(info, value))
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        from dsr1_tune.models.trained.reward_model import check_reward

        try:
            check_reward(folder)
        except ModelError as error:
            raise ValueError(f"{error.message} ({error.hint})") from None
        return str(folder)

    def _check(self) -> None:
        super()._check()
        if not (self.scale or self.sigmoid or self.unbounded):
            raise ValueError("its number may be any; say how it becomes a score: sigmoid: true, scale or unbounded")

    def open(self) -> BatchScorer:
        """Load it. Raises ModelError where it cannot be."""
        from dsr1_tune.align.rewards.scoring import score_conversations
        from dsr1_tune.models.trained.reward_model import load_scalar

        model = load_scalar(Path(self.path))

        # A blank answer cannot be shown to a model; it is worth the least there is.
        blank = NoScore("the answer is blank") if self.unbounded else 0.0

        def score_all(answers: Sequence[Answered]) -> list[Score]:
            pairs = [(one.prompt, text) if (text := self.text(one)).strip() else None for one in answers]
            return in_batches(lambda asked: score_conversations(model, asked), pairs, self.mapped, blank)

        return score_all


Task = RewardModel | Exact | Numeric | Regex | Function
