"""The settings of every rule: what it is for, what to do where it objects, and its thresholds."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dsr1_tune.config import ConfigSection, Count
from dsr1_tune.data.rules.text_features import folded

Action = Literal["drop", "warn", "off"]
Part = Annotated[float, Field(gt=0.0, le=1.0)]
Words = tuple[Annotated[str, Field(min_length=1)], ...]


class Rule(ConfigSection):
    """What every rule has."""

    action: Action = "drop"
    """drop removes the row, warn keeps it with a remark, off does not look."""

    @model_validator(mode="before")
    @classmethod
    def _action_alone(cls, value: Any) -> Any:
        """`refusal: warn` is short for `refusal: {action: warn}`."""
        return {"action": value} if isinstance(value, (str, bool)) else value

    @field_validator("action", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value


class Lengths(Rule):
    """Questions and answers too short to say anything, or too long to be learned from."""

    min_question_chars: Count = 1
    """Shorter questions are dropped."""
    min_answer_chars: Count = 1
    """Shorter final answers are dropped; whole answers such as B, 42 or 是 are short."""
    max_chars: Count = 32_000
    """Longer questions and answers are dropped."""


class Encoding(Rule):
    """Text decoded in a wrong encoding: mended where that is certain, else dropped as mojibake."""

    repair: bool = True
    """Mend what can be mended."""


class ReplacementCharacter(Rule):
    """Text with U+FFFD, where characters were lost."""

    max_count: Annotated[int, Field(ge=0)] = 0
    """So many in a row's texts are let pass."""


class OddCharacters(Rule):
    """Text that is mostly signs, or holds control characters."""

    max_share: Part = 0.7
    """Largest share of signs among the characters; code, formulas, tables and emoji asked for are no signs."""
    min_chars: Count = 8
    """Shorter texts are not looked at: ??? and :-) may be answers."""
    max_control_share: Part = 0.01
    """Largest share of control, private and unassigned characters."""


class PlaceholderAnswer(Rule):
    """Answers that only stand in for one: TODO, N/A, 待补充."""

    words: Words = ()
    """Further stand-ins of your own."""


class AnswerRepeatsQuestion(Rule):
    """Answers that are the question, or its first line, again."""

    min_chars: Count = 4
    """Answers with fewer letters are not looked at."""


class AnswerRestatesQuestion(Rule):
    """Answers that say the question in other words and nothing more."""

    max_new_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """An answer that says "you ask ..." with a larger share of words not in the question says something new."""


class RepeatedText(Rule):
    """Answers that go round in circles: n-grams of characters in Chinese, of words elsewhere."""

    max_share: Part = 0.5
    """Largest share of n-grams that stood there before."""
    max_run: Count = 5
    """So many times the same phrase in a row is too often, where that makes up a fifth of the text."""
    min_chars: Annotated[int, Field(ge=20)] = 20
    """Shorter answers are not looked at."""


class RepeatedLines(Rule):
    """Answers in which the same lines stand again and again."""

    max_share: Part = 0.5
    """Largest share of the text that lies in lines which stood there before."""
    max_run: Count = 4
    """So many times the same line in a row is too often."""


class RepeatedTurn(Rule):
    """Conversations in which the same question gets the same answer twice in a row."""


class HtmlMarkup(Rule):
    """Answers with the markup of a web page, where nobody asked for HTML."""

    max_tags: Annotated[int, Field(ge=0)] = 1
    """So many tags and entities such as &nbsp; are let pass."""


class Boilerplate(Rule):
    """Answers with a web page's navigation, cookie or copyright text."""

    phrases: Words = ()
    """Further phrases of your own, each of them a reason."""


class Refusal(Rule):
    """Answers that refuse, or speak as an AI language model."""

    max_chars: Count = 500
    """Longer answers that begin with an apology also help, and are kept."""
    phrases: Words = ()
    """Further beginnings of answers, of your own."""


class Advertisement(Rule):
    """Answers that advertise: private contacts, or links and numbers with calls to buy."""

    phrases: Words = ()
    """Further phrases of your own, each of them a reason."""


class TruncatedAnswer(Rule):
    """Answers that break off in the middle of a sentence."""

    min_chars: Count = 10
    """Shorter answers are not looked at."""
    unended: bool = True
    """Also where the last sentence only lacks its full stop, though those before it have one; false for forum text."""


class WrongLanguage(Rule):
    """Answers in another language than the question, which asks for none."""

    min_letters: Count = 24
    """Answers with fewer letters of the other language are not looked at; a Han character counts for three."""
    max_share: Part = 0.7
    """Largest share of letters in another script than the question's."""


class BlockedWord(Rule):
    """Rows with a word of your list."""

    words: Words = ()
    """The words; case, width and the kind of space do not matter, and Latin words are whole words."""
    files: tuple[str, ...] = ()
    """Text files with a word on each line, beside the pack; # begins a remark."""

    @cached_property
    def in_low(self) -> tuple[str, ...]:
        """The words in lower case and half width."""
        return tuple(filter(None, map(folded, self.words)))

    @cached_property
    def have_spaces(self) -> bool:
        """Whether some words are phrases, between whose words any space may stand."""
        return any(" " in word for word in self.in_low)

    @cached_property
    def by_start(self) -> dict[str, tuple[str, ...]]:
        """The words by their first two characters, so that a long list costs no more than a short one."""
        starts: dict[str, list[str]] = {}
        for word in self.in_low:
            starts.setdefault(word[:2], []).append(word)
        return {start: tuple(words) for start, words in starts.items()}


class TemplatePlaceholder(Rule):
    """Text with placeholders such as {{name}}: kept, but said."""

    action: Action = "warn"
    """warn keeps the row with a remark; templates are often meant."""
