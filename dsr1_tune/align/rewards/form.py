"""Components that look at the form of an answer: is it whole, in the right language, of the right length?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from dsr1_tune.align.rewards.component import Answered, Component, NoScore, Whether
from dsr1_tune.data.dedup.languages import LANGUAGES, language_codes
from dsr1_tune.data.dedup.ngrams import normalise, tokens
from dsr1_tune.data.encode import thinking
from dsr1_tune.data.record import Drop, Message, Place, Record
from dsr1_tune.data.rules.filters.repetition import RepeatedLines, RepeatedText, repeated_lines, repeated_text
from dsr1_tune.data.rules.filters.truncated_answer import TruncatedAnswer, truncated_answer
from dsr1_tune.data.rules.filters.wrong_language import WrongLanguage, wrong_language
from dsr1_tune.data.rules.text_features import WORD
from dsr1_tune.text.composed import composed

Whole = Annotated[int, Field(ge=0)]


class NotEmpty(Whether):
    """1 where the answer says anything at all, a letter or a digit; 0 where it is blank or signs only."""

    type: Literal["not_empty"]

    def _holds(self, one: Answered) -> bool:
        return any(map(str.isalnum, self.text(one)))


class Ended(Whether):
    """1 where the model ended the answer itself, 0 where it was cut off."""

    type: Literal["ended"]

    def _holds(self, one: Answered) -> bool:
        return one.has_ended


class WellFormed(Whether):
    """1 where the answer is whole: JSON that parses, code blocks that are closed, text that does not break off."""

    type: Literal["well_formed"]
    format: Literal["text", "markdown", "json"] = "text"
    """text: it does not break off in a sentence, bracket or code block; markdown: code blocks are closed; json: all of
    it, or all of its one code block, parses."""

    def _holds(self, one: Answered) -> bool:
        text = self.text(one).strip()
        if not text:
            return False
        if self.format == "json":
            return _is_json(text)
        if self.format == "markdown":
            return _fences_are_closed(text)
        return keeps(truncated_answer, TruncatedAnswer(min_chars=1), one, text)


def _is_json(text: str) -> bool:
    fenced = _FENCED.fullmatch(text)
    with suppress(ValueError, RecursionError):
        json.loads(fenced[1] if fenced else text)
        return True
    return False


_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.S | re.I)


def _fences_are_closed(text: str) -> bool:
    """Whether every line of ``` or ~~~ that opens a block has one that closes it."""
    opened = ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if not found:
            continue
        fence, rest = found[1], line[found.end() :].strip()
        if not opened:
            opened = fence
        elif fence[0] == opened[0] and len(fence) >= len(opened) and not rest:
            opened = ""
    return not opened


_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class Language(Whether):
    """1 where the answer is in the wanted language, or too short to tell; 0 where it is in another."""

    type: Literal["language"]
    want: Literal["same", "zh", "en", "ja", "ko"] = "same"
    """same: the question's, unless the question asks for another; en takes every language in Latin letters."""

    def _holds(self, one: Answered) -> bool:
        text = self.text(one)
        if not text.strip():
            return False
        if self.want == "same":
            return keeps(wrong_language, WrongLanguage(), one, text)
        text = _NO_WORDS.sub(" ", text)
        if sum(3 if ord(sign) > 0x2E7F else 1 for sign in text if sign.isalpha()) < 8:
            return True
        found = LANGUAGES[language_codes(tokens(normalise([[("assistant", text)]])))[0]]
        return found in ("none", "latin" if self.want == "en" else self.want)


# Code and formulas.
_NO_WORDS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]{1,300}`|\$\$[^$]{1,2000}\$\$|\$[^$\n]{1,500}\$|\\\[.{1,2000}?\\\]|\\\(.{1,500}?\\\)|\\[a-z]+",
    re.S,
)


class Length(Component):
    """1 where the answer is as long as wanted; it falls to 0 over the soft edge."""

    type: Literal["length"]
    min_chars: Whole = 0
    """Shorter ones lose."""
    max_chars: Whole = 0
    """Longer ones lose; 0 is no limit."""
    min_tokens: Whole = 0
    """Shorter ones lose, in tokens of the whole answer."""
    max_tokens: Whole = 0
    """Longer ones lose, in tokens of the whole answer; 0 is no limit."""
    soft: Whole = 0
    """Over so many characters (or tokens) outside the limits the score falls from 1 to 0; 0 makes a hard edge."""

    def _check(self) -> None:
        if not (self.min_chars or self.max_chars or self.min_tokens or self.max_tokens):
            raise ValueError("give min_chars, max_chars, min_tokens or max_tokens")
        if 0 < self.max_chars < self.min_chars:
            raise ValueError(f"min_chars={self.min_chars} is more than max_chars={self.max_chars}")
        if 0 < self.max_tokens < self.min_tokens:
            raise ValueError(f"min_tokens={self.min_tokens} is more than max_tokens={self.max_tokens}")

    def score(self, one: Answered) -> float:
        """From 0 to 1: the lesser of what characters and tokens give."""
        given = self._inside(len(self.text(one).strip()), self.min_chars, self.max_chars)
        if not (self.min_tokens or self.max_tokens):
            return given
        if not one.num_tokens and one.answer:
            raise NoScore("how many tokens the answer has is not known here; use min_chars and max_chars")
        return min(given, self._inside(one.num_tokens, self.min_tokens, self.max_tokens))

    def _inside(self, length: int, least: int, most: int) -> float:
        outside = max(least - length, length - most if most else 0, 0)
        return max(0.0, 1 - outside / (self.soft + 1)) if self.soft else float(outside == 0)


class NoRepetition(Component):
    """1 where hardly anything stands there again; it falls to 0 as more and more does, or lines or phrases go round."""

    type: Literal["no_repetition"]
    of: Literal["said", "thought", "all"] = "all"
    """What it reads: all of the answer, or, where set, what is said or the thought alone."""
    ngram: Annotated[int, Field(ge=1)] = 4
    """Words that stand together there before; Han characters count as half a word each."""
    free: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """So large a share of n-grams may have stood there before; from there the score falls, to 0 where all have."""

    def score(self, one: Answered) -> float:
        """From 0 to 1."""
        text = self.text(one)
        if not text.strip():
            return 0.0
        if not keeps(repeated_text, RepeatedText(min_chars=40), one, text):
            return 0.0
        if not keeps(repeated_lines, RepeatedLines(), one, text):
            return 0.0
        again = max(_share_again(text, self.ngram), _share_in_runs(text))
        return min(1.0, (1 - again) / (1 - self.free))


def _share_again(text: str, ngram: int) -> float:
    """The share of a text's n-grams of words (Han: twice as many characters) that stood there before."""
    words, size = WORD.findall(text.lower()), ngram
    num_words = sum(max(1, len(_HAN.findall(word)) / 2) for word in words)
    if num_words < (60 if all(map(str.isdigit, words)) else 20):  # too short to tell, or a sum
        return 0.0
    if len(_HAN.findall(text)) * 4 > sum(map(len, words)):
        words, size = list("".join(words)), 2 * ngram
    grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


_HAN = re.compile(r"[\u3400-\u9fff]")


def _share_in_runs(text: str) -> float:
    """The share of a text that is the same few characters ten times in a row and more: aaaaaaaaaa, hahahaha..."""
    runs = (
        found.end() - found.start()
        for found in _RUN.finditer(text)
        if not found[1].isdigit() or found.end() - found.start() > 40  # 1000000000000, 0.3333333333333
    )
    return sum(runs) / len(text) if text else 0.0


# Not of blanks and lines of a table, which are laid out so.
_RUN = re.compile(r"([^\s=\-_*.|#~+]{1,6}?)\1{9,}")


class ThinkFormat(Whether):
    """1 where the answer is one <think>thought</think> and then what it says, both not empty; else 0."""

    type: Literal["think_format"]
    of: Literal["all"] = "all"
    """It reads all of the answer."""
    opened: Literal["answer", "prompt", "either"] = "either"
    """Who writes <think>: the answer, or a chat template that ends the prompt with it."""

    def _holds(self, one: Answered) -> bool:
        wanted = {"answer": (1,), "prompt": (0,), "either": (0, 1)}[self.opened]
        if one.answer.count(thinking.CLOSE) != 1 or one.answer.count(thinking.OPEN) not in wanted:
            return False
        found = thinking.part(one.answer)
        return bool(found and found.reasoning.strip() and found.answer.strip())


class Words(Component):
    """What `contains` and `forbids` look for."""

    words: tuple[str, ...] = ()
    """Words or phrases, whatever their case; of Latin letters only as words of their own."""
    pattern: Annotated[str, AfterValidator(lambda value: compiled(value).pattern)] | None = None
    """A regular expression of Python, looked for anywhere; (?i) at its beginning ignores case."""

    @field_validator("words")
    @classmethod
    def _not_blank(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.strip() for word in value):
            raise ValueError("a blank word is found everywhere")
        return value

    def _check(self) -> None:
        if not self.words and self.pattern is None:
            raise ValueError("give words or a pattern")

    @cached_property
    def _sought(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(_as_word, map(composed, self.words)))

    def found(self, text: str) -> list[bool]:
        """Whether each of the words, and the pattern, stands in a text."""
        plain = composed(text)
        found = [sought.search(plain) is not None for sought in self._sought]
        return found if self.pattern is None else [*found, re.search(self.pattern, text) is not None]


def compiled(pattern: str) -> re.Pattern[str]:
    """The regular expression. Raises ValueError that says where it is wrong."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from None


def _as_word(word: str) -> re.Pattern[str]:
    word = word.strip()
    before = r"(?<![A-Za-z0-9])" if word[0].isascii() and word[0].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if word[-1].isascii() and word[-1].isalnum() else ""
    return re.compile(before + re.escape(word) + after, re.I)


class Contains(Words):
    """How many of the words, and of the pattern, the answer has."""

    type: Literal["contains"]
    need: Literal["all", "any"] = "all"
    """all: the score is the share that is found; any: 1 where one is found."""

    def score(self, one: Answered) -> float:
        """From 0 to 1."""
        found = self.found(self.text(one))
        return sum(found) / len(found) if self.need == "all" else float(any(found))


class Forbids(Words, Whether):
    """1 where the answer has none of the words, nor the pattern; else 0."""

    type: Literal["forbids"]

    def _holds(self, one: Answered) -> bool:
        return not any(self.found(self.text(one)))


def keeps(rule: Callable[[Record, Any], Any], settings: Any, one: Answered, text: str) -> bool:
    """Whether a rule about rows of data has nothing against an answer of that text."""
    messages = (*(one.prompt or (Message("user", ""),)), Message("assistant", text))
    return not isinstance(rule(Record(messages, Place("answer", 1, 0)), settings), Drop)


Form = NotEmpty | Ended | WellFormed | Language | Length | NoRepetition | ThinkFormat | Contains | Forbids
