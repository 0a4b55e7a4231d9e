"""Layered rewards: what an answer is worth, from its form up to the task, as a YAML file says.

Letters: N answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsr1_tune.data.record import Message


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer to be judged: the conversation before it, what it says, and what is known of it."""

    prompt: tuple[Message, ...]
    answer: str
    expected: str | None = None
    """The checkable result, where the row has one."""
    num_tokens: int = 0
    has_ended: bool = True
    """Whether the model ended it itself, or it was cut at rollout.max_new_tokens."""

    @property
    def question(self) -> str:
        """The last thing the user said."""
        return next((message.content for message in reversed(self.prompt) if message.role == "user"), "")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer is worth in all, by layer after its gate, and by component; and what went wrong in judging it."""

    total: float
    layers: dict[str, float] = field(default_factory=dict)
    components: dict[str, float] = field(default_factory=dict)
    """By "layer/component", as the component gave it, before weights and gates."""
    errors: tuple[str, ...] = ()
    """A line for each component that raised, or gave no number, for this answer."""


class LayeredReward:
    """A reward file, checked; `open` loads the models that it names, `judge` gives every answer its verdict."""

    @classmethod
    def read(cls, file: Path) -> LayeredReward:
        """Check a reward file whole. Raises ConfigError that lists every problem; loads no weights."""
        raise NotImplementedError

    def open(self) -> LayeredReward:
        """Load the models that the file names. Raises ModelError where one cannot be."""
        raise NotImplementedError

    def judge(self, answers: Sequence[Answered]) -> list[Verdict]:
        """N verdicts, in order. A component that fails for an answer counts 0 there and is named in `errors`."""
        raise NotImplementedError
