"""A Rule: its settings, its function, and the codes it drops rows with, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dsr1_tune.config import ConfigSection
from dsr1_tune.data.record import Drop, Row
from dsr1_tune.text.composed import composed

YAML_OFF = BeforeValidator(lambda value: "off" if value is False else value)
"""YAML reads a bare `off` as false."""
Action = Annotated[Literal["drop", "warn", "off"], YAML_OFF]
Part = Annotated[float, Field(gt=0.0, le=1.0)]
Words = tuple[Annotated[str, Field(min_length=1), AfterValidator(composed)], ...]
"""Words of the user's own, in the form in which `Text` shows what they are looked for in."""


class Meaning(NamedTuple):
    """What a code means, in English and in Chinese."""

    en: str
    zh: str


class RuleSettings(ConfigSection):
    """The settings that every rule has; a rule's own settings class adds its thresholds."""

    action: Action = "drop"
    """drop removes the row, warn keeps it with a remark, off does not look."""

    @model_validator(mode="before")
    @classmethod
    def _action_alone(cls, value: Any) -> Any:
        """`refusal: warn` is short for `refusal: {action: warn}`."""
        return {"action": value} if isinstance(value, (str, bool)) else value

    @property
    def is_idle(self) -> bool:
        """Whether the rule can object to nothing with these settings, and need not run."""
        return self.action == "off"

    @classmethod
    def resolve(cls, given: dict[str, Any], folder: Path, problems: list[str]) -> dict[str, Any]:
        """The settings as a pack in `folder` gives them, with what files beside the pack hold in their place.

        What cannot be read is added to `problems`, by the setting's name.
        """
        return given


@dataclass(frozen=True)
class Rule:
    """A rule that looks at each row: `check` takes row and settings and returns the row, perhaps repaired, or a Drop.

    `means` says what the codes of its Drops mean: one Meaning where the code is the rule's name, else one for each.
    A rule with `reads_questions` also sees rows without a good answer: prompts, and feedback on a bad answer.
    """

    name: str
    check: Callable[[Any, Any], Row | Drop]
    means: Meaning | Mapping[str, Meaning]
    settings: type[RuleSettings] = RuleSettings
    reads_questions: bool = False

    @property
    def codes(self) -> Mapping[str, Meaning]:
        """The codes of its Drops with their meanings."""
        return {self.name: self.means} if isinstance(self.means, Meaning) else self.means
